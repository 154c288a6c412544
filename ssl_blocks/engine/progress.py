"""Lightning callbacks that tell how training goes: rows of logs, and one line in the terminal."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from html import escape
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_blocks.engine.late import Later
from ssl_blocks.engine.loop import Loop

SILENCE, PAUSE = 600.0, 2.0  # seconds without a line, or with a bar at rest, after which a run says how far it is


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

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
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


class TerminalBar:
    """A bar of rich."""

    def __init__(self, console: Console, title: str, total: int, step: int) -> None:
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task(title, total=total, completed=step, state="")
        self.bar.start()

    def show(self, step: int, state: str, left: float) -> None:
        """Move on; rich measures the time left by itself."""
        self.bar.update(self.task, completed=step, state=state)

    def close(self) -> None:
        """Leave the terminal usable."""
        self.bar.stop()


class NotebookBar:
    """A bar in the output of a notebook's cell, without any widget: what a saved notebook shows is its last state."""

    def __init__(self, title: str, total: int, step: int) -> None:
        from IPython.display import display

        self.title, self.total = title, total
        self.handle = display(self._html(step, "", None), display_id=True)  # type: ignore[no-untyped-call]

    def show(self, step: int, state: str, left: float) -> None:
        """Show it in the same place."""
        self.handle.update(self._html(step, state, left))

    def close(self) -> None:
        """It stays as it is."""

    def _html(self, step: int, state: str, left: float | None) -> Any:
        from IPython.display import HTML

        ahead = "" if left is None else f"  left {left:.0f} s"
        words = escape(f"{step}/{self.total}  {state}{ahead}")
        bar = f'<progress value="{step}" max="{self.total}" style="width:16em"></progress>'
        return HTML(f"<pre>{escape(self.title)} {bar} {words}</pre>")  # type: ignore[no-untyped-call]


class RichRunProgress(pl.Callback):
    """One line for the whole run: steps, loss, learning rate, images per second, time left, and what ``remark`` tells.

    It is a bar in a terminal and in a notebook. Elsewhere (a file, SLURM, nohup) a plain line is printed every so many
    steps; ``None``: per tenth of the run, and after ten minutes without one.
    """

    def __init__(
        self, console: Console, title: str, remark: Callable[[], str] = str, *, every: int | None = None
    ) -> None:
        self.console, self.title, self.remark, self.every = console, title, remark, every
        self.bar: TerminalBar | NotebookBar | None = None
        self.started = self.told = 0.0
        self.first_step = 0
        self._later = Later()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the line."""
        assert isinstance(pl_module, Loop)
        self.started = self.told = time.perf_counter()
        self.first_step, total = trainer.global_step, pl_module.task.plan.num_steps
        if self.console.is_jupyter and not self.console.quiet:
            self.bar = NotebookBar(self.title, total, self.first_step)
        elif self.console.is_terminal:
            self.bar = TerminalBar(self.console, self.title, total, self.first_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
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
        silent = time.perf_counter() - self.told
        if self.bar is not None:
            return step % 20 == 0 or silent > PAUSE
        if self.every:
            return step % self.every == 0
        return step * 10 // total > (step - 1) * 10 // total or silent > SILENCE

    def _show(self, step: int, total: int, speed: float, left: float, now: dict[str, float]) -> None:
        state = f"loss {now['loss']:.4f}  lr {now['lr']:.1e}  {speed:,.0f} images/s{self.remark()}"
        self.told = time.perf_counter()
        if self.bar is not None:
            self.bar.show(step, state, left)
        else:
            self.console.print(f"step {step}/{total}  {state}  left {left:.0f} s", soft_wrap=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last step, and close the line."""
        self._later.catch_up()
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal usable."""
        self._close()
