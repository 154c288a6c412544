"""What keeps a teacher from collapse: its temperature, and the centre of its logits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.bounds import Positive, Share, Whole, Width
from ssl_blocks.doors import checked
from ssl_blocks.values import Progress


@checked
@dataclass(frozen=True)
class TeacherSchedule:
    """How sharp the teacher is, and how slowly it follows.

    Args:
        temperature: of the teacher's softmax, after the warm-up.
        warmup_temperature: in the first epoch.
        warmup_epochs: epochs in which the temperature goes linearly from one to the other; both ends count. 0: none.
        momentum: of the teacher's weights in the first step; it rises along half a cosine to 1 after the last.

    Raises:
        ValueError: if a temperature is not above 0, or the momentum not within [0, 1].

    Examples:
        >>> schedule = TeacherSchedule(temperature=0.07, warmup_temperature=0.04, warmup_epochs=4)
        >>> [round(schedule.temperature_at(epoch), 3) for epoch in range(5)]
        [0.04, 0.05, 0.06, 0.07, 0.07]
    """

    temperature: Positive = 0.04
    warmup_temperature: Positive = 0.04
    warmup_epochs: Whole = 0
    momentum: Share = 0.996

    def temperature_at(self, epoch: int) -> float:
        """Temperature in an epoch, counted from 0."""
        if epoch >= self.warmup_epochs:
            return self.temperature
        share = epoch / (self.warmup_epochs - 1) if self.warmup_epochs > 1 else 0.0
        return self.warmup_temperature + (self.temperature - self.warmup_temperature) * share


@checked
class Center(nn.Module):
    """Moving average of a teacher's logits, subtracted from them so that no class wins everywhere (DINO, Sec. 3.1).

    Args:
        dim: number of classes, ``K``.
        momentum: of the average, in [0, 1].

    Raises:
        ValueError: if the momentum lies outside [0, 1].
    """

    value: Tensor

    def __init__(self, dim: Width, momentum: Share) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(dim))
        # logits of the step under way, summed, and last their number: in the tensor, for a plain one would compile the
        # step anew; no buffer, for DistributedDataParallel would overwrite it with that of the first process
        self._seen: Tensor | None = None

    @torch.no_grad()
    def note(self, logits: Float[Tensor, "n k"]) -> None:
        """Add raw logits ``[n, K]`` of a step up."""
        total = logits.sum(0, dtype=self.value.dtype)
        both = torch.cat([total, total.new_full((1,), len(logits))])
        self._seen = both if self._seen is None else self._seen + both

    def before_step(self, progress: Progress) -> None:
        """Begin to count."""
        self._seen = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Move towards the mean of what all processes noted in this step."""
        if self._seen is None:
            return
        both = self._seen
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(both)
        self.value.mul_(self.momentum).add_(both[:-1] / both[-1], alpha=1 - self.momentum)
        self._seen = None
