"""Lightning callbacks: progress in the terminal, kNN while training."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_blocks.data import ImageData, ImageSplit
from ssl_blocks.evaluation import encoder_features, knn_accuracy
from ssl_blocks.training.module import PretrainModule


class RichRunProgress(pl.Callback):
    """One line for the whole run: steps, loss, learning rate, images per second, kNN, time left.

    Where the output is no terminal, a plain line is printed per tenth of the run instead.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task: Any = None
        self.started = 0.0
        self.first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the line."""
        assert isinstance(pl_module, PretrainModule)
        self.started, self.first_step = time.perf_counter(), trainer.global_step
        if not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("pretraining"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=pl_module.num_steps, completed=trainer.global_step, state="")
        self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh now and then: reading the loss makes a GPU wait."""
        assert isinstance(pl_module, PretrainModule)
        step, total = trainer.global_step, pl_module.num_steps
        if self.bar is not None and (step % 20 == 0 or step == total):
            self.bar.update(self.task, completed=step, state=self._state(trainer, pl_module))
        elif self.bar is None and (step * 10 // total > (step - 1) * 10 // total or step == total):
            left = (time.perf_counter() - self.started) / (step - self.first_step) * (total - step)
            self.console.print(f"step {step}/{total}  {self._state(trainer, pl_module)}  left {left:.0f} s")

    def _state(self, trainer: pl.Trainer, module: PretrainModule) -> str:
        shown = {name: float(value) for name, value in trainer.callback_metrics.items()}
        seen = (trainer.global_step - self.first_step) * module.config.optimizer.batch_size
        speed = seen / (time.perf_counter() - self.started)
        text = f"loss {shown.get('loss', float('nan')):.4f}  lr {shown.get('lr', 0):.1e}  {speed:,.0f} images/s"
        return text + (f"  kNN {shown['knn']:.1%}" if "knn" in shown else "")

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the line."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal usable."""
        self._close()


class OnlineKnn(pl.Callback):
    """Watch what the features are worth while they form: kNN accuracy on the test images.

    Args:
        data: with labels in both splits.
        every: epochs between two looks.
        bank_size: training images to look among; the first of a shuffled order.
        autocast_dtype: precision of the encoder.
    """

    def __init__(self, data: ImageData, *, every: int, bank_size: int, autocast_dtype: torch.dtype | None) -> None:
        assert data.test is not None
        chosen = torch.randperm(len(data.train.images), generator=torch.Generator().manual_seed(0))[:bank_size]
        assert data.train.labels is not None
        self.bank = ImageSplit(images=data.train.images[chosen], labels=data.train.labels[chosen])
        self.test, self.mean, self.std = data.test, data.mean, data.std
        self.every, self.autocast_dtype = every, autocast_dtype

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score and log, every so many epochs and after the last."""
        assert isinstance(pl_module, PretrainModule)
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero and (epoch % self.every == 0 or epoch == trainer.max_epochs):
            pl_module.log("knn", self.score(pl_module), rank_zero_only=True)

    def score(self, module: PretrainModule) -> float:
        """KNN accuracy of the encoder as it stands."""
        encoder = module.objective.export_encoder()
        bank, test = (
            encoder_features(
                encoder,
                split.images,
                mean=self.mean,
                std=self.std,
                device=module.device,
                autocast_dtype=self.autocast_dtype,
            )
            for split in (self.bank, self.test)
        )
        assert self.bank.labels is not None
        assert self.test.labels is not None
        return knn_accuracy(bank, self.bank.labels, test, self.test.labels, k=min(20, len(bank)))
