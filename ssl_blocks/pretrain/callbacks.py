"""Lightning callbacks: progress in the terminal, kNN while training."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_blocks.data import ImageData, ImageSplit
from ssl_blocks.engine.parallel import whole_weights
from ssl_blocks.evaluation import Extractor, knn_accuracy
from ssl_blocks.pretrain.module import PretrainModule


class StepLog(pl.Callback):
    """Log loss, learning rate and what else an objective reports, every so many steps.

    It comes before whatever saves checkpoints: Lightning's own logging would come after, and a run that is killed
    in between would lose the row.

    Args:
        every: optimizer steps between two rows.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Log where it is due; reading the values makes a GPU wait."""
        assert isinstance(pl_module, PretrainModule)
        if pl_module.step_is_done and trainer.global_step % self.every == 0:
            values = {name: float(value) for name, value in pl_module.latest.items()}
            for logger in trainer.loggers:
                logger.log_metrics(values, trainer.global_step - 1)


class RichRunProgress(pl.Callback):
    """One line for the whole run: steps, loss, learning rate, images per second, kNN, time left.

    Where the output is no terminal, a plain line is printed per tenth of the run instead.

    Args:
        console: where to print.
        knn: whose latest score is shown.
    """

    def __init__(self, console: Console, knn: "OnlineKnn | None" = None) -> None:
        self.console, self.knn = console, knn
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
        if not pl_module.step_is_done:
            return
        if self.bar is not None and (step % 20 == 0 or step == total):
            self.bar.update(self.task, completed=step, state=self._state(trainer, pl_module))
        elif self.bar is None and (step * 10 // total > (step - 1) * 10 // total or step == total):
            left = (time.perf_counter() - self.started) / (step - self.first_step) * (total - step)
            self.console.print(f"step {step}/{total}  {self._state(trainer, pl_module)}  left {left:.0f} s")

    def _state(self, trainer: pl.Trainer, module: PretrainModule) -> str:
        shown = {name: float(module.latest[name]) for name in ("loss", "lr")}
        seen = (trainer.global_step - self.first_step) * module.config.optimizer.batch_size
        speed = seen / (time.perf_counter() - self.started)
        text = f"loss {shown['loss']:.4f}  lr {shown['lr']:.1e}  {speed:,.0f} images/s"
        score = None if self.knn is None else self.knn.latest
        return text if score is None else f"{text}  kNN {score:.1%}"

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
        data: in memory, with labels in both splits.
        every: optimizer steps between two looks; there is one after the last step, too.
        autocast_dtype: precision of the encoder.
    """

    def __init__(self, data: ImageData, *, every: int, autocast_dtype: torch.dtype | None) -> None:
        self.data, self.every, self.autocast_dtype = data, every, autocast_dtype
        self.latest: float | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Score and log where it is due."""
        assert isinstance(pl_module, PretrainModule)
        step = trainer.global_step
        if not pl_module.step_is_done or (step % self.every and step != trainer.max_steps):
            return
        # where the weights are dealt out, every process has to help in putting them together
        if trainer.is_global_zero or pl_module.device_mesh is not None:
            with whole_weights(pl_module.objective):
                self.latest = self.score(pl_module)
            for logger in trainer.loggers:
                logger.log_metrics({"knn": self.latest, "epoch": step / pl_module.steps_per_epoch}, step - 1)

    def score(self, module: PretrainModule) -> float:
        """KNN accuracy of the encoder as it stands."""
        encoder = module.objective.export_encoder()
        train, test = self.data.train, self.data.test
        assert isinstance(train, ImageSplit)
        assert isinstance(test, ImageSplit)
        assert train.labels is not None
        assert test.labels is not None
        tokenizer, place = module.objective.tokenizer, (module.device, self.autocast_dtype)
        extractor = Extractor(encoder, self.data.mean, self.data.std, tokenizer, *place)
        bank, queries = extractor(train.images), extractor(test.images)
        return knn_accuracy(bank, train.labels, queries, test.labels, k=min(20, len(bank)))
