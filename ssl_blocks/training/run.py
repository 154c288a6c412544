"""One pretraining run from configuration to results: prepare everything, then fit."""

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console

from ssl_blocks.data import ImageData, ImageShape, load
from ssl_blocks.encoders import TimmViT
from ssl_blocks.evaluation import Scores, encoder_features, raw_pixels, score_features
from ssl_blocks.objectives import ObjectiveModule
from ssl_blocks.training.callbacks import OnlineKnn, RichRunProgress
from ssl_blocks.training.config import RunConfig, section
from ssl_blocks.training.export import export_encoder
from ssl_blocks.training.logs import quiet
from ssl_blocks.training.module import PretrainModule
from ssl_blocks.training.report import print_report, write_figures

C = TypeVar("C", bound=RunConfig)
Assemble = Callable[[C, ImageShape], ObjectiveModule]
SHOTS = 10


@dataclass
class Run(Generic[C]):
    """A run whose parts are known to fit; nothing is written before ``fit``.

    Args:
        config: the recipe's configuration.
        data: images in memory.
        module: objective and data for Lightning.
        device: ``"cpu"`` or ``"cuda"``.
        autocast_dtype: 16-bit type, or ``None`` for single precision.
    """

    config: C
    data: ImageData
    module: PretrainModule
    device: str
    autocast_dtype: torch.dtype | None

    @classmethod
    def prepare(cls, config: C, assemble: Assemble[C]) -> "Run[C]":
        """Load data, assemble the objective, and try all of it once on two images.

        Raises:
            FileExistsError: if the run's folder already holds something.
            ValueError: if data or parts do not fit.
            TypeError: if the encoder cannot be kept causal.
        """
        check_folder(config.folder)
        device, autocast_dtype = choose_device(config)
        settings = config.data
        with section("data"):
            data = load(
                settings.name,
                image_size=settings.image_size,
                root=settings.root,
                max_train=settings.max_train,
                max_test=settings.max_test,
                seed=config.seed,
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            objective = assemble(config, data.shape)
        module = PretrainModule(objective, data, config)
        module.check()
        return cls(config, data, module, device, autocast_dtype)

    def fit(self) -> Path:
        """Train, score, draw figures and export the encoder; return the run's folder."""
        config, folder, console = self.config, self.config.folder, Console()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        scores = [*self._score_pixels(), *self._score_encoder("random encoder")]
        started = time.perf_counter()
        with _quiet_lightning():
            self._trainer(console).fit(self.module)
        seconds = time.perf_counter() - started
        self.module.to("cpu")
        scores += self._score_encoder("pretrained encoder")
        self._export(folder / "encoder")
        figures = write_figures(self.module.objective, self.data, folder / "figures")
        results = {"seconds": round(seconds, 1), "scores": [score.as_dict() for score in scores]}
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        print_report(console, config, scores, figures, seconds=seconds)
        return folder

    def _trainer(self, console: Console) -> pl.Trainer:
        config, folder = self.config, self.config.folder
        callbacks: list[pl.Callback] = [
            RichRunProgress(console),
            ModelCheckpoint(
                folder / "checkpoints",
                every_n_epochs=max(1, round(config.trainer.checkpoint_every)),
                save_last=True,
                save_top_k=1,
            ),
        ]
        if config.trainer.knn_every is not None and self._has_labels():
            callbacks.insert(
                0,  # before the progress line, which shows its result
                OnlineKnn(
                    self.data,
                    every=config.trainer.knn_every,
                    bank_size=config.trainer.knn_bank,
                    autocast_dtype=self.autocast_dtype,
                ),
            )
        return pl.Trainer(
            max_epochs=config.trainer.epochs,
            accelerator="gpu" if self.device == "cuda" else "cpu",
            devices=1,
            precision="32-true" if self.autocast_dtype is None else "bf16-mixed",
            gradient_clip_val=config.optimizer.clip_grad,
            logger=[
                CSVLogger(folder, name="", version=""),
                TensorBoardLogger(folder, name="", version="tensorboard"),
            ],
            callbacks=callbacks,
            log_every_n_steps=max(1, min(50, self.module.steps_per_epoch)),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the data set shards itself
        )

    def _has_labels(self) -> bool:
        return self.data.train.labels is not None and self.data.test is not None and self.data.test.labels is not None

    def _score_pixels(self) -> list[Scores]:
        return self._score("raw pixels", partial(raw_pixels, mean=self.data.mean, std=self.data.std))

    def _score_encoder(self, name: str) -> list[Scores]:
        encoder = self.module.objective.export_encoder()
        encoder.module.to(self.device)
        encode = partial(
            encoder_features,
            encoder,
            mean=self.data.mean,
            std=self.data.std,
            device=self.device,
            autocast_dtype=self.autocast_dtype,
        )
        scores = self._score(name, encode)
        encoder.module.to("cpu")
        return scores

    def _score(self, name: str, encode: Callable[[torch.Tensor], torch.Tensor]) -> list[Scores]:
        train, test = self.data.train, self.data.test
        if test is None or train.labels is None or test.labels is None:
            return []
        return [score_features(name, encode(train.images), train.labels, encode(test.images), test.labels, shots=SHOTS)]

    def _export(self, folder: Path) -> None:
        encoder = self.module.objective.export_encoder()
        assert isinstance(encoder, TimmViT), "recipes build timm encoders"
        export_encoder(
            encoder,
            folder,
            tokenizer=self.module.objective.tokenizer,
            mean=self.data.mean,
            std=self.data.std,
        )


def check_folder(folder: Path) -> None:
    """Refuse a folder that already holds something.

    Raises:
        FileExistsError: naming the folder and the ways out.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} already holds a run, which is never overwritten: give another --name or --output_dir, or move it"
        )


def choose_device(config: RunConfig) -> tuple[str, torch.dtype | None]:
    """Resolve ``auto`` to what this machine has: device, and 16-bit type or ``None``.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    wanted, precision = config.trainer.device, config.trainer.precision
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.device='cuda' needs a CUDA GPU, and there is none; use auto or cpu")
    device = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if _has_bf16(device) else "fp32"
    return device, torch.bfloat16 if precision == "bf16" else None


def _has_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = dict(torch.cpu.get_capabilities())
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence what does not concern the user here: loader workers, hardware notes, deprecations of its own."""
    with quiet("pytorch_lightning", logging.WARNING), warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            "Experiment logs directory .* exists and is not empty.*",  # config.yaml is there already
            ".*LeafSpec.*is deprecated.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
