"""Seeing to it that the loss is a number."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ssl_blocks.engine.checkpoints import last_good
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.late import Later

LOOK_EVERY = 25  # steps between two looks at the losses on a GPU


class LossWatch:
    """Find, without making a GPU wait, the first step whose loss was no finite number.

    The message names the last checkpoint in the folder, if there is one, and what may help. ``every`` is the number of
    steps between two looks; ``None``: 1 on a CPU, and on a GPU some.

    Attributes:
        before_telling: is called before the message names a file: one may be under way.
    """

    def __init__(self, folder: Path | None, advice: str, *, every: int | None = None) -> None:
        self.folder, self.advice, self.every = folder, advice, every
        self._losses: Tensor | None = None  # since the last look
        self._num, self._next_step = 0, 0
        self.before_telling: Callable[[], None] = lambda: None
        self._later = Later()

    def see(self, loss: Tensor, step: int) -> None:
        """Note the loss of step ``step``, the same in all processes."""
        self._later.catch_up()
        if self._losses is None:
            every = self.every or (1 if loss.device.type == "cpu" else LOOK_EVERY)
            self._losses = torch.empty(every, device=loss.device)
        self._losses[self._num].copy_(loss.detach())
        self._num, self._next_step = self._num + 1, step + 1
        if self._num == len(self._losses):
            self._look()

    def check(self) -> None:
        """Stop the run if any loss so far was bad: call before weights are saved, for it makes a GPU wait."""
        self._look()
        self._later.catch_up()

    def _look(self) -> None:
        if self._losses is None or not self._num:
            return
        bad = self._losses[: self._num].isfinite().logical_not().int()
        first, self._num = self._next_step - self._num, 0
        self._later.use({"any": bad.max(), "place": bad.argmax()}, partial(self._judge, first))

    def _judge(self, first_step: int, found: dict[str, float]) -> None:
        if not found["any"]:
            return
        self.before_telling()
        raise RunStopped(
            f"the loss was not a finite number in step {first_step + int(found['place'])} (counted from 0), the run "
            f"stops; {last_good(self.folder)}. {self.advice}"
        )
