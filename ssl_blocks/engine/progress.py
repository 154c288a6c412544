"""Lightning callbacks that tell how training goes: rows of logs, and one line in the terminal."""

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_blocks.engine.loop import Loop


class StepLog(pl.Callback):
    """Log loss, learning rate and what else a task reports, every so many optimizer steps.

    It comes before whatever saves checkpoints: Lightning's own logging would come after, and a run that is killed
    in between would lose the row.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Log where it is due; reading the values makes a GPU wait."""
        assert isinstance(pl_module, Loop)
        if pl_module.step_is_done and trainer.global_step % self.every == 0:
            values = {name: float(value) for name, value in pl_module.latest.items()}
            for logger in trainer.loggers:
                logger.log_metrics(values, trainer.global_step - 1)


class RichRunProgress(pl.Callback):
    """One line for the whole run: steps, loss, learning rate, images per second, time left, and what ``remark`` tells.

    Where the output is no terminal, a plain line is printed per tenth of the run instead.
    """

    def __init__(self, console: Console, title: str, remark: Callable[[], str] = str) -> None:
        self.console, self.title, self.remark = console, title, remark
        self.bar: Progress | None = None
        self.task: Any = None
        self.started = 0.0
        self.first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the line."""
        assert isinstance(pl_module, Loop)
        self.started, self.first_step = time.perf_counter(), trainer.global_step
        if not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn(self.title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        total = pl_module.task.plan.num_steps
        self.task = self.bar.add_task("", total=total, completed=trainer.global_step, state="")
        self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh now and then: reading the loss makes a GPU wait."""
        assert isinstance(pl_module, Loop)
        step, total = trainer.global_step, pl_module.task.plan.num_steps
        if not pl_module.step_is_done:
            return
        if self.bar is not None and (step % 20 == 0 or step == total):
            self.bar.update(self.task, completed=step, state=self._state(trainer, pl_module))
        elif self.bar is None and (step * 10 // total > (step - 1) * 10 // total or step == total):
            left = (time.perf_counter() - self.started) / (step - self.first_step) * (total - step)
            self.console.print(f"step {step}/{total}  {self._state(trainer, pl_module)}  left {left:.0f} s")

    def _state(self, trainer: pl.Trainer, loop: Loop) -> str:
        shown = {name: float(loop.latest[name]) for name in ("loss", "lr")}
        seen = (trainer.global_step - self.first_step) * loop.task.plan.batch_size
        speed = seen / (time.perf_counter() - self.started)
        return f"loss {shown['loss']:.4f}  lr {shown['lr']:.1e}  {speed:,.0f} images/s{self.remark()}"

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
