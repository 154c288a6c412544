"""Seeing to it that the loss is a number."""

from pathlib import Path

import torch
from torch import Tensor

from ssl_blocks.engine.checkpoints import last_good
from ssl_blocks.engine.errors import RunStopped

LOOK_EVERY = 25  # steps between two looks at a value on a GPU, which has to wait for each


class LossWatch:
    """Remember, without making a GPU wait, the first step whose loss was no finite number.

    The message names the last checkpoint in the folder, if there is one, and what may help.
    """

    def __init__(self, folder: Path | None, advice: str) -> None:
        self.folder, self.advice = folder, advice
        self.first_bad: Tensor | None = None

    def see(self, loss: Tensor, step: int) -> None:
        """Note the loss of step ``step``, the same in all processes."""
        here = torch.where(loss.isfinite(), torch.inf, float(step))
        self.first_bad = here if self.first_bad is None else torch.minimum(self.first_bad, here)
        if loss.device.type == "cpu" or step % LOOK_EVERY == 0:
            self.check()

    def check(self) -> None:
        """Stop the run if any loss so far was bad: call before weights are saved."""
        if self.first_bad is None or not self.first_bad.isfinite():
            return
        raise RunStopped(
            f"the loss was not a finite number in step {int(self.first_bad)} (counted from 0), the run stops; "
            f"{last_good(self.folder)}. {self.advice}"
        )
