"""Ending a run in order when the system, or its user, asks for it."""

import signal
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.loop import Loop
from ssl_blocks.engine.saving import Checkpoints
from ssl_blocks.engine.watch import LOOK_EVERY

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
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop after a finished step, in all processes after the same one."""
        step = trainer.global_step
        assert isinstance(pl_module, Loop)
        if not pl_module.step_is_done or (trainer.world_size > 1 and step % LOOK_EVERY):
            return
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            path = self.checkpoints.save(trainer)
            number = self.received or signal.SIGTERM
            raise RunStopped(
                f"stopped by {signal.Signals(number).name} after step {step}, saved as {path}; {self.hint}",
                exit_code=128 + number,
            )
