"""One pretraining run from configuration to results: prepare everything, then fit."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console

from ssl_blocks.data import ImageData, ImageShape, UnreadableImageError, load
from ssl_blocks.encoders.card import write_card
from ssl_blocks.encoders.hub import export_encoder
from ssl_blocks.engine.checkpoints import AtomicCheckpointIO, Checkpoints, check_checkpoint, list_checkpoints
from ssl_blocks.engine.devices import choose_device
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.logs import MetricsFile
from ssl_blocks.engine.parallel import (
    Processes,
    choose_strategy,
    count_processes,
    environment_plugins,
)
from ssl_blocks.engine.rank import is_rank_zero
from ssl_blocks.engine.settings import section
from ssl_blocks.engine.signals import StopOnSignal
from ssl_blocks.files import TEMPORARY_SUFFIX, atomically
from ssl_blocks.objectives import Objective
from ssl_blocks.pretrain.callbacks import OnlineKnn, RichRunProgress, StepLog
from ssl_blocks.pretrain.config import RunConfig
from ssl_blocks.pretrain.figures import write_curves, write_figures
from ssl_blocks.pretrain.module import PretrainModule
from ssl_blocks.pretrain.report import print_report
from ssl_blocks.pretrain.resume import starting_point
from ssl_blocks.pretrain.scoring import has_labels, measure_objective, score_encoder, score_pixels
from ssl_blocks.quiet import quiet

C = TypeVar("C", bound=RunConfig)
Assemble = Callable[[C, ImageShape], Objective]
NUM_TEST = 10_000  # of streamed data, for scores


@dataclass
class Run(Generic[C]):
    """A run whose parts are known to fit; nothing is written before ``fit``.

    Args:
        config: the recipe's configuration.
        data: images.
        module: objective and data for Lightning.
        processes: how many train together.
        device: ``"cpu"`` or ``"cuda"``.
        autocast_dtype: 16-bit type, or ``None`` for single precision.
        checkpoint: from which the run goes on; ``None`` starts at the beginning.
        assemble: builds the objective.
    """

    config: C
    data: ImageData
    module: PretrainModule
    processes: Processes
    device: str
    autocast_dtype: torch.dtype | None
    checkpoint: Path | None
    assemble: Assemble[C]

    @classmethod
    def prepare(cls, config: C, assemble: Assemble[C], *, resume: Path | bool | None = None) -> "Run[C]":
        """Load data, assemble the objective, and try all of it once on two images.

        Args:
            config: the recipe's configuration.
            assemble: builds the objective for images of a shape.
            resume: ``None`` begins a run; ``True`` goes on with it where its folder exists; a path goes on with
                that run, or from that checkpoint.

        Raises:
            FileExistsError: if the run's folder already holds something.
            FileNotFoundError: if there is no run to resume.
            ValueError: if data or parts do not fit, or the checkpoint is damaged or another run's.
            TypeError: if the encoder cannot be kept causal.
        """
        processes = count_processes(config.trainer, config.optimizer)
        if not is_rank_zero() and resume is None:
            resume = True  # the first process has looked, and may have begun to write
        checkpoint = starting_point(config, resume)
        device, autocast_dtype = choose_device(config.trainer.device, config.trainer.precision, section="trainer.")
        settings = config.data
        with section("data"):
            data = load(
                settings.name,
                image_size=settings.image_size,
                channels=settings.channels,
                root=settings.root,
                max_train=settings.max_train,
                max_test=settings.max_test,
                seed=config.seed,
                storage=settings.storage,
                max_bytes=int(settings.max_memory_gib * 2**30),
                corrupt=settings.corrupt,
            )
        module = PretrainModule(build(config, assemble, data.shape), data, config, world_size=processes.world_size)
        module.check()
        if checkpoint is not None:
            module.continue_from(check_checkpoint(checkpoint), checkpoint)
        return cls(config, data, module, processes, device, autocast_dtype, checkpoint, assemble)

    def fit(self) -> Path:
        """Train, score, draw figures and export the encoder; return the run's folder.

        Raises:
            RunStopped: on a signal, a loss that is no number, or files that cannot be written.
        """
        folder, console = self.config.folder, Console(quiet=not is_rank_zero())
        if self.checkpoint is not None and (folder / "results.json").is_file() and not self._steps_left():
            console.print(f"{folder} is complete: nothing is left to do")
            return folder
        try:
            self._fit(folder, console)
        except OSError as error:
            raise RunStopped(f"the run stops, for a file could not be written: {error}; {self._last_good()}") from error
        except UnreadableImageError as error:
            raise RunStopped(
                f"the run stops: {error} (data.corrupt=skip would pass over it); {self._last_good()}"
            ) from error
        return folder

    def _fit(self, folder: Path, console: Console) -> None:
        # where weights are dealt out, every process has to help with scoring while training
        sample = self._sample() if is_rank_zero() or self.config.trainer.strategy == "fsdp" else None
        scores = []
        if is_rank_zero():
            assert sample is not None
            self._open(folder, console)
            scores = [*score_pixels(sample), *self._score(sample, "random encoder")]
        if self._steps_left():
            with _quiet_lightning():
                trainer = self._trainer(console, sample)
                trainer.fit(
                    self.module, ckpt_path=None if self.checkpoint is None else str(self.checkpoint), weights_only=True
                )
        if not is_rank_zero():
            return
        assert sample is not None
        self._take_final_weights()
        scores += self._score(sample, "pretrained encoder")
        measured = measure_objective(
            self.module.objective, sample, device=self.device, autocast_dtype=self.autocast_dtype
        )
        self._export(folder / "encoder")
        figures = write_figures(self.module.objective, self.data, folder / "figures", self.module.augment)
        figures.append(write_curves(folder, scores))
        results = {
            "recipe": self._recipe(),
            "seconds": round(self.module.seconds, 1),
            "scores": [score.as_dict() for score in scores],
            "objective": measured,
            "skipped_images": [str(path) for path in self.data.skipped],
        }
        with atomically(folder / "results.json") as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n")
        write_card(folder)
        print_report(console, self.config, scores, figures, seconds=self.module.seconds, measured=measured)
        if self.data.skipped:
            console.print(f"{len(self.data.skipped)} unreadable images were skipped, {self.data.skipped[0]} first")

    def _open(self, folder: Path, console: Console) -> None:
        for leftover in folder.rglob(f".*{TEMPORARY_SUFFIX}"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        if not (folder / "config.yaml").is_file():
            with atomically(folder / "config.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        elif self.checkpoint is None:
            console.print(f"{folder} has no checkpoint yet: starting from the beginning")
        else:
            console.print(f"going on from {self.checkpoint}, step {self.module.resumed_step}/{self.module.num_steps}")

    def _steps_left(self) -> int:
        return self.module.num_steps - self.module.resumed_step

    def _last_good(self) -> str:
        good = next(iter(list_checkpoints(self.config.folder)), None)
        return "there is no checkpoint yet" if good is None else f"the last good checkpoint is {good}"

    def _sample(self) -> ImageData:
        """The labelled images for scores: all that are in memory, or so many of those that are not."""
        if not self.data.is_streamed:
            return self.data.sample()
        return self.data.sample(self.config.trainer.knn_bank, NUM_TEST)

    def _trainer(self, console: Console, sample: ImageData | None) -> pl.Trainer:
        config, folder, steps = self.config, self.config.folder, self.module.steps_per_epoch
        checkpoints = Checkpoints(
            folder,
            every=max(1, round(config.trainer.checkpoint_every * steps)),
            keep=config.trainer.keep_checkpoints,
        )
        knn = self._knn(console, sample)
        tensorboard = TensorBoardLogger(
            folder, name="", version="tensorboard", purge_step=self.module.resumed_step or None
        )
        return pl.Trainer(
            default_root_dir=folder,
            max_epochs=-1,
            max_steps=self.module.num_steps,
            accelerator="gpu" if self.device == "cuda" else "cpu",
            devices=self.processes.devices,
            num_nodes=self.processes.num_nodes,
            strategy=choose_strategy(config.trainer, self.processes.world_size),
            plugins=[AtomicCheckpointIO(), *environment_plugins()],
            precision="32-true" if self.autocast_dtype is None else "bf16-mixed",
            accumulate_grad_batches=config.optimizer.accumulate,
            gradient_clip_val=config.optimizer.clip_grad,
            logger=[MetricsFile(folder / "metrics.csv", resumed_step=self.module.resumed_step), tensorboard],
            callbacks=[
                StepLog(max(1, min(50, steps))),
                *([knn] if knn is not None else []),
                RichRunProgress(console, knn),
                checkpoints,
                StopOnSignal(checkpoints, folder),
            ],
            log_every_n_steps=1,  # StepLog decides
            enable_checkpointing=False,  # Checkpoints does it, so that a killed run can go on
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the loader shards itself
        )

    def _knn(self, console: Console, sample: ImageData | None) -> OnlineKnn | None:
        settings = self.config.trainer
        if settings.knn_every is None or sample is None:
            return None
        if not has_labels(sample):
            console.print("trainer.knn_every has no effect: there are no labels, or no test images")
            return None
        return OnlineKnn(
            sample.sample(settings.knn_bank, NUM_TEST),
            every=settings.knn_every * self.module.steps_per_epoch,
            autocast_dtype=self.autocast_dtype,
        )

    def _take_final_weights(self) -> None:
        """Have the trained objective in this process, whole and on CPU."""
        if self._steps_left() and self.config.trainer.strategy != "fsdp":
            self.module.to("cpu")
            return
        last = check_checkpoint(list_checkpoints(self.config.folder)[0])
        objective = build(self.config, self.assemble, self.data.shape)
        self.module = PretrainModule(objective, self.data, self.config)
        self.module.load_state_dict(last["state_dict"])
        self.module.continue_from(last, list_checkpoints(self.config.folder)[0])

    def _score(self, sample: ImageData, name: str) -> list[Any]:
        objective = self.module.objective
        return score_encoder(name, objective, sample, device=self.device, autocast_dtype=self.autocast_dtype)

    def _recipe(self) -> dict[str, Any]:
        """What the model card says of where the encoder comes from."""
        return {
            "name": type(self.config).__name__.removesuffix("Config"),
            "objective": type(self.module.objective).__name__,
            "train_images": len(self.data.train),
            "version": version("ssl_blocks"),
        }

    def _export(self, folder: Path) -> None:
        objective = self.module.objective
        export_encoder(
            objective.export_encoder(),
            folder,
            tokenizer=objective.tokenizer,
            mean=self.data.mean,
            std=self.data.std,
        )


def build(config: C, assemble: Assemble[C], shape: ImageShape) -> Objective:
    """Assemble the objective with weights that depend on the configuration's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return assemble(config, shape)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence what does not concern the user here: loader workers, hardware notes, deprecations of its own."""
    with (
        quiet("pytorch_lightning", logging.WARNING),
        quiet("lightning_fabric", logging.WARNING),
        warnings.catch_warnings(),
    ):
        for message in (
            ".*does not have many workers.*",
            ".*LeafSpec.*is deprecated.*",
            ".*module\\(s\\) in eval mode at the start of training.*",  # a teacher is
            ".*your dataloader is not resumable.*",  # it starts at the step at which the run stands
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
