"""Lightning callbacks that tell how training goes: rows of logs, and one line in the terminal."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_blocks.engine.late import Later
from ssl_blocks.engine.loop import Loop


class StepLog(pl.Callback):
    """Log loss, learning rate and what else a task reports, every so many optimizer steps.

    It comes before whatever saves checkpoints: Lightning's own logging would come after, and a run that is killed
    in between would lose the row.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._later = Later()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Log where it is due: values of a GPU a step later."""
        assert isinstance(pl_module, Loop)
        self._later.catch_up()
        if pl_module.step_is_done and trainer.global_step % self.every == 0:
            self._later.use(pl_module.latest, partial(_log, trainer, trainer.global_step - 1))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write what a run that goes on from this checkpoint will not log again."""
        self._later.catch_up()
        for logger in trainer.loggers:
            logger.save()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what is left."""
        self._later.catch_up()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Log what is left, unless it is the GPU that failed."""
        with suppress(RuntimeError):
            self._later.catch_up()


def _log(trainer: pl.Trainer, step: int, values: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step)


class RichRunProgress(pl.Callback):
    """One line for the whole run: steps, loss, learning rate, images per second, time left, and what ``remark`` tells.

    Where the output is no terminal, a plain line is printed every so many steps instead: ``None`` means per tenth of
    the run.
    """

    def __init__(
        self, console: Console, title: str, remark: Callable[[], str] = str, *, every: int | None = None
    ) -> None:
        self.console, self.title, self.remark, self.every = console, title, remark, every
        self.bar: Progress | None = None
        self.task: Any = None
        self.started = 0.0
        self.first_step = 0
        self._later = Later()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the line."""
        assert isinstance(pl_module, Loop)
        self.started, self.first_step = time.perf_counter(), trainer.global_step
        if not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        total = pl_module.task.plan.num_steps
        self.task = self.bar.add_task(self.title, total=total, completed=trainer.global_step, state="")
        self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh now and then, with values of a GPU a step later."""
        assert isinstance(pl_module, Loop)
        self._later.catch_up()
        step, plan = trainer.global_step, pl_module.task.plan
        if not pl_module.step_is_done or not self._is_due(step, plan.num_steps):
            return
        pace = (time.perf_counter() - self.started) / (step - self.first_step)
        numbers = {name: pl_module.latest[name] for name in ("loss", "lr")}
        show = partial(self._show, step, plan.num_steps, plan.batch_size / pace, pace * (plan.num_steps - step))
        self._later.use(numbers, show)

    def _is_due(self, step: int, total: int) -> bool:
        if step == total:
            return True
        if self.bar is not None:
            return step % 20 == 0
        return step % self.every == 0 if self.every else step * 10 // total > (step - 1) * 10 // total

    def _show(self, step: int, total: int, speed: float, left: float, now: dict[str, float]) -> None:
        state = f"loss {now['loss']:.4f}  lr {now['lr']:.1e}  {speed:,.0f} images/s{self.remark()}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, state=state)
        else:
            self.console.print(f"step {step}/{total}  {state}  left {left:.0f} s")

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last step, and close the line."""
        self._later.catch_up()
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal usable."""
        self._close()
