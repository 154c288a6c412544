"""The teacher of a self-distillation: a student's moving average, and the schedule that it follows."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_blocks.encoders.protocol import RegionEncoder
from ssl_blocks.values import Progress


@dataclass(frozen=True)
class TeacherSchedule:
    """How sharp the teacher is, and how slowly it follows.

    Args:
        temperature: of the teacher's softmax, after the warm-up.
        warmup_temperature: in the first epoch.
        warmup_epochs: epochs in which the temperature goes linearly from one to the other; both ends count. 0: none.
        momentum: of the teacher's weights in the first step; it rises along half a cosine to 1 in the last.

    Raises:
        ValueError: if a temperature is not above 0, or the momentum not within [0, 1].

    Examples:
        >>> schedule = TeacherSchedule(temperature=0.07, warmup_temperature=0.04, warmup_epochs=4)
        >>> [round(schedule.temperature_at(epoch), 3) for epoch in range(5)]
        [0.04, 0.05, 0.06, 0.07, 0.07]
    """

    temperature: float = 0.04
    warmup_temperature: float = 0.04
    warmup_epochs: int = 0
    momentum: float = 0.996

    def __post_init__(self) -> None:
        for name in ("temperature", "warmup_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and at most 1")

    def temperature_at(self, epoch: int) -> float:
        """Temperature in an epoch, counted from 0."""
        if epoch >= self.warmup_epochs:
            return self.temperature
        share = epoch / (self.warmup_epochs - 1) if self.warmup_epochs > 1 else 0.0
        return self.warmup_temperature + (self.temperature - self.warmup_temperature) * share

    def momentum_at(self, progress: Progress) -> float:
        """Momentum in a step."""
        from lightly.utils.scheduler import cosine_schedule  # heavy, and needed here only

        return float(cosine_schedule(progress.step, progress.num_steps, self.momentum, 1.0))


class Teacher(nn.Module):
    """The moving average of a student."""

    encoder: RegionEncoder

    def __init__(self, encoder: RegionEncoder, view_head: nn.Module, region_head: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.view_head, self.region_head = encoder, view_head, region_head
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, except for batch norms."""
        super().train(False)
        for part in self.modules():
            if isinstance(part, _BatchNorm):
                part.train(mode)
        return self

    @torch.no_grad()
    def follow(self, student: nn.Module, *, momentum: float) -> None:
        """Move towards the student; buffers other than those of batch norms become its own."""
        for name in ("encoder", "view_head", "region_head"):
            ours, theirs = getattr(self, name), getattr(student, name)
            if ours is None:
                continue
            for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
                mine.mul_(momentum).add_(its, alpha=1 - momentum)
            for part, other in zip(ours.modules(), theirs.modules(), strict=True):
                if not isinstance(part, _BatchNorm):
                    for mine, its in zip(part.buffers(recurse=False), other.buffers(recurse=False), strict=True):
                        mine.copy_(its)
