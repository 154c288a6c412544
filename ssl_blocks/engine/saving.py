"""Checkpoints written whole or not at all, and a run that ends in order when the system or its user asks for it."""

import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from ssl_blocks.engine.checkpoints import checkpoint_path, list_checkpoints, read_checkpoint, write_checkpoint
from ssl_blocks.engine.errors import Interruption, RunStopped
from ssl_blocks.engine.late import Snapshot
from ssl_blocks.engine.loop import Loop
from ssl_blocks.engine.watch import LOOK_EVERY
from ssl_blocks.files import atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to files: whole or absent, on disk before old ones go, plain values only.

    The newest ``keep`` checkpoints stay. With ``beside`` it writes while training goes on: the state in which it was
    saved; and an error ends the run at the next `look` or `join`.
    """

    def __init__(self, keep: int, *, beside: bool = False) -> None:
        self.keep = keep
        self._writer = ThreadPoolExecutor(1, "checkpoints") if beside else None
        self._under_way: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, or begin to."""
        self.join()
        if self._writer is None:
            self._write(checkpoint, Path(path))
        else:
            snapshot = Snapshot(checkpoint)
            self._under_way = self._writer.submit(lambda: self._write(snapshot.content(), Path(path)))

    def join(self) -> None:
        """Wait until what was saved is on disk; raise what went wrong."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def look(self) -> None:
        """Raise what went wrong, if it is known already."""
        if self._under_way is not None and self._under_way.done():
            self.join()

    def _write(self, content: dict[str, Any], path: Path) -> None:
        try:
            with atomically(path) as temporary:
                write_checkpoint(content, temporary)
        except RuntimeError as error:
            cause = next((e for e in (error.__cause__, error.__context__) if isinstance(e, OSError)), None)
            reason = cause.strerror if cause is not None else str(error).splitlines()[0]
            raise OSError(f"{path} could not be written ({reason})") from error
        # later ones, of an abandoned future, wait until the run gets there and replaces them
        reached = [other for other in list_checkpoints(path.parent.parent) if other <= path]
        for old in reached[self.keep :]:
            old.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint that may be trained on: not mapped from its file, which may soon be removed."""
        return read_checkpoint(Path(path), mapped=False)


class Checkpoints(pl.Callback):
    """Save every so many optimizer steps and after the last."""

    def __init__(self, run: Path, files: AtomicCheckpointIO, *, every: int) -> None:
        self.run, self.files, self.every = run, files, every
        self.saved_step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where a run goes on, that step is saved already."""
        self.saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save where it is due; only a finished step is saved."""
        self.files.look()
        step = trainer.global_step
        if step != self.saved_step and (step % self.every == 0 or step == trainer.max_steps):
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> Path:
        """Save now, unless this step is saved already; where it goes on disk beside training, `join` the files."""
        step = trainer.global_step
        path = checkpoint_path(self.run, step)
        if step != self.saved_step:
            trainer.save_checkpoint(path)
            self.saved_step = step
        return path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the last checkpoint on disk."""
        self.files.join()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no file half written; what went wrong first is what is told."""
        try:
            self.files.join()
        except OSError as error:
            exception.add_note(str(error))


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal(pl.Callback):
    """On SIGTERM or Ctrl-C: finish the step, save, and stop, telling how to go on. A second Ctrl-C stops at once."""

    def __init__(self, checkpoints: Checkpoints, hint: str) -> None:
        self.checkpoints, self.hint = checkpoints, hint
        self.received: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen instead of Lightning, whose handler would talk to other processes amid a step.

        When training ends, Lightning puts back the handlers that were there before.
        """
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise Interruption(number)
        self.received = number

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop after a finished step, in all processes after the same one."""
        step = trainer.global_step
        assert isinstance(pl_module, Loop)
        if not pl_module.step_is_done or (trainer.world_size > 1 and step % LOOK_EVERY):
            return
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            path = self.checkpoints.save(trainer)
            self.checkpoints.files.join()
            number = self.received or signal.SIGTERM
            raise RunStopped(
                f"stopped by {signal.Signals(number).name} after step {step}, saved as {path}; {self.hint}",
                exit_code=128 + number,
            )
