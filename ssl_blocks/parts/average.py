"""A part that follows another one slowly: the teacher of self-distillation."""

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_blocks.values import Progress


class MovingAverage(nn.Module):
    """A copy of a module whose weights are the moving average of the module's, step by step.

    The teacher of DINO, EsViT, iBOT, data2vec and I-JEPA. ``copy`` gets no gradient and stays in evaluation mode, but
    for batch norms, which see batches of their own. Buffers other than theirs follow at once. The module itself stays
    its owner's: it is neither registered nor saved here.

    Args:
        of: the module to follow.
        momentum: of the average, in [0, 1]: a number, or what gives it for a step.

    Raises:
        ValueError: if a number lies outside [0, 1].

    Examples:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> teacher = MovingAverage(student, momentum=0.5)
        >>> before = student.weight.item()
        >>> _ = student.weight.data.add_(1.0)
        >>> teacher.after_step()
        >>> round(teacher.copy.weight.item() - before, 3)
        0.5
    """

    copy: nn.Module

    def __init__(self, of: nn.Module, momentum: float | Callable[[Progress], float]) -> None:
        super().__init__()
        self.schedule = momentum if callable(momentum) else None
        self.momentum = None if callable(momentum) else float(momentum)
        if self.momentum is not None and not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum={momentum} must be at least 0 and at most 1")
        self._of = (of,)  # in a tuple nn.Module does not register it
        self.copy = copy.deepcopy(of).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "MovingAverage":
        """Stay in evaluation mode, except for batch norms."""
        super().train(False)
        for part in self.modules():
            if isinstance(part, _BatchNorm):
                part.train(mode)
        return self

    def before_step(self, progress: Progress) -> None:
        """Set the momentum of the step to come."""
        if self.schedule is not None:
            self.momentum = self.schedule(progress)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move towards the module.

        Raises:
            RuntimeError: if the momentum follows a schedule and ``before_step`` was never called.
        """
        (of,) = self._of
        if self.momentum is None:
            raise RuntimeError("the momentum follows a schedule: call before_step(progress) before after_step()")
        for mine, its in zip(self.copy.parameters(), of.parameters(), strict=True):
            mine.mul_(self.momentum).add_(its, alpha=1 - self.momentum)
        for part, other in zip(self.copy.modules(), of.modules(), strict=True):
            if not isinstance(part, _BatchNorm):
                for held, shown in zip(part.buffers(recurse=False), other.buffers(recurse=False), strict=True):
                    held.copy_(shown)


def cosine_momentum(start: float) -> Callable[[Progress], float]:
    """Momentum that rises along half a cosine from ``start`` in the first step to 1 in the last (DINO, appendix).

    Raises:
        ValueError: if ``start`` lies outside [0, 1].

    Examples:
        >>> momentum = cosine_momentum(0.9)
        >>> [round(momentum(Progress(step, 0, 3, 1)), 3) for step in range(3)]
        [0.9, 0.95, 1.0]
    """
    if not 0 <= start <= 1:
        raise ValueError(f"momentum={start} must be at least 0 and at most 1")

    def at(progress: Progress) -> float:
        from lightly.utils.scheduler import cosine_schedule  # heavy, and needed here only

        return cast(float, cosine_schedule(progress.step, progress.num_steps, start, 1.0))

    return at
