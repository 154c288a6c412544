"""A part that follows another one slowly: the teacher of self-distillation."""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_blocks.bounds import Share
from ssl_blocks.doors import checked
from ssl_blocks.values import Progress


@checked
class MovingAverage(nn.Module):
    """A copy of a module whose weights are the moving average of the module's, step by step.

    The teacher of DINO, EsViT, iBOT, data2vec and I-JEPA. ``copy`` gets no gradient and stays in evaluation mode, but
    for batch norms, which see batches of their own. Buffers other than theirs follow at once. The module itself stays
    its owner's: it is neither registered nor saved here.

    Args:
        of: the module to follow.
        momentum: of the average, in [0, 1]: a number, or what gives it for a step.

    Attributes:
        rate: 1 - momentum: a number, or where the momentum follows a schedule a scalar on the module's device, that of
            the step under way, which kernels read, so that a captured CUDA graph follows, too.

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
    rate: Tensor | float

    def __init__(self, of: nn.Module, momentum: Share | Callable[[Progress], float]) -> None:
        super().__init__()
        self.schedule = momentum if callable(momentum) else None
        self._is_told = self.schedule is None
        if callable(momentum):
            self.register_buffer("rate", torch.tensor(torch.nan), persistent=False)
        else:
            self.rate = 1 - momentum
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
        if self.schedule is not None and isinstance(self.rate, Tensor):
            self.rate.fill_(1 - self.schedule(progress))
            self._is_told = True

    @torch.no_grad()
    def after_step(self) -> None:
        """Move towards the module, in single precision at least.

        Raises:
            RuntimeError: if the momentum follows a schedule and ``before_step`` was never called.
        """
        (of,) = self._of
        if not self._is_told:
            raise RuntimeError("the momentum follows a schedule: call before_step(progress) before after_step()")
        pairs = list(zip(self.copy.parameters(), of.parameters(), strict=True))
        if pairs:
            self._move(pairs)
        buffers = [
            pair
            for part, other in zip(self.copy.modules(), of.modules(), strict=True)
            if not isinstance(part, _BatchNorm)
            for pair in zip(part.buffers(recurse=False), other.buffers(recurse=False), strict=True)
        ]
        if buffers:
            torch._foreach_copy_([held for held, _ in buffers], [shown for _, shown in buffers])

    def _move(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        wide = [mine.to(torch.promote_types(mine.dtype, torch.float32)) for mine, _ in pairs]  # most are themselves
        theirs = [its.to(mine.dtype) for mine, (_, its) in zip(wide, pairs, strict=True)]
        if isinstance(self.rate, float | int):
            torch._foreach_lerp_(wide, theirs, self.rate)
        else:
            steps = torch._foreach_sub(theirs, wide)
            torch._foreach_mul_(steps, self.rate)
            torch._foreach_add_(wide, steps)
        for (mine, _), moved in zip(pairs, wide, strict=True):
            if mine is not moved:
                mine.copy_(moved)


@checked
def cosine_momentum(start: Share) -> Callable[[Progress], float]:
    """Momentum that rises along half a cosine from ``start`` in the first step to 1 after the last (DINO's code).

    Raises:
        ValueError: if ``start`` lies outside [0, 1].

    Examples:
        >>> momentum = cosine_momentum(0.9)
        >>> [round(momentum(Progress(step, 0, 3, 1)), 3) for step in range(3)]
        [0.9, 0.925, 0.975]
    """

    def at(progress: Progress) -> float:
        return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * progress.step / progress.num_steps))

    return at
