"""What a training loop is told: what to compute of a batch, and how long and how fast to train."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.engine.optimizers import Schedule, chained_by_epoch, parameter_groups, warmup_cosine
from ssl_blocks.values import Progress


@dataclass(frozen=True)
class Plan:
    """How long, in what portions and how fast a task is trained, by AdamW.

    Args:
        steps_per_epoch: optimizer steps of one epoch.
        epochs: of the whole run.
        lr: peak learning rate.
        seed: with process, step and part, decides all draws.
        batch_size: images per optimizer step, over all processes and accumulated parts.
        accumulate: parts of a step that each process computes one after the other.
        warmup_steps: of the linear warm-up, counted in.
        warmup_start: share of the peak at which the warm-up begins.
        min_lr: learning rate after the last step, reached along half a cosine.
        weight_decay: of the parameters that decay.
        weight_decay_end: the same at the end, reached along half a cosine in the first group; ``None``: constant.
        betas: AdamW's decay rates.
        clip_grad: largest norm of the gradient; ``None``: no clipping.
        schedule: whose code the learning rate follows: see `schedule_of`.
    """

    steps_per_epoch: int
    epochs: int
    lr: float
    seed: int
    batch_size: int
    accumulate: int = 1
    warmup_steps: int = 0
    warmup_start: float = 0.0
    min_lr: float = 0.0
    weight_decay: float = 0.0
    weight_decay_end: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = None
    schedule: Literal["mae", "dino", "apl"] = "mae"

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def progress(self, step: int) -> Progress:
        """Where a run stands before step ``step``, counted from 0."""
        return Progress(step, step // self.steps_per_epoch, self.num_steps, self.steps_per_epoch)

    def schedule_of(self, optimizer: torch.optim.Optimizer) -> Schedule:
        """Learning rates of every step: `warmup_cosine` as in MAE's or DINO's code, `chained_by_epoch` as in APL's."""
        ends: dict[str, Any] = {"min_lr": self.min_lr, "warmup_start": self.warmup_start}
        if self.schedule == "apl":
            warmup, steps = self.warmup_steps // self.steps_per_epoch, self.steps_per_epoch
            return chained_by_epoch(optimizer, epochs=self.epochs, steps_per_epoch=steps, warmup_epochs=warmup, **ends)
        sizes: dict[str, Any] = {"num_steps": self.num_steps, "warmup_steps": self.warmup_steps}
        return warmup_cosine(optimizer, **sizes, **ends, ends_at_peak=self.schedule == "dino")


class Portion(NamedTuple):
    """Which batches of a run a process computes.

    Attributes:
        first_step: optimizer steps done already.
        rank: number of the process, from 0.
        world_size: number of processes.
        local_size: how many of them share this machine.
        device: on which the process computes.
    """

    first_step: int
    rank: int
    world_size: int
    local_size: int
    device: torch.device


class Moment(NamedTuple):
    """Where in a run a batch is computed.

    Attributes:
        step: optimizer steps done.
        part: number of the batch among all of its step, those of other processes counted in.
        generator: for this batch alone, on the device of the process.
    """

    step: int
    part: int
    generator: torch.Generator


@dataclass(frozen=True, eq=False)
class CountedLoss:
    """A loss that can be averaged exactly over parts of a step that count differently much.

    Args:
        mean: to call ``backward`` on.
        count: what the mean was divided by, any number from 0 in one unit for all parts: images, rows, weights.
        metrics: scalars worth logging.
    """

    mean: Float[Tensor, ""]
    count: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Task(ABC):
    """What is trained. Inherit to have a loop train something else.

    Attributes:
        model: holds all weights that are trained or saved.
        plan: how long and how fast.
        advice: what may help where the loss is no finite number.
        replay: what does a bad step again that was kept, to be said after the name of its file.
    """

    model: nn.Module
    plan: Plan
    advice: str = "A smaller learning rate may help"
    replay: str = ""

    @abstractmethod
    def batches(self, portion: Portion) -> Iterable[Any]:
        """Load the batches of a process, from a step on; whatever is drawn depends on their place in the run alone."""

    @abstractmethod
    def loss(self, batch: Any, moment: Moment) -> CountedLoss:
        """Compute the loss of a batch; draws outside ``moment.generator`` follow torch's, which is seeded for it."""

    def no_weight_decay(self) -> Collection[str]:
        """Names of parameters of the model that weight decay must spare, besides norms and biases."""
        return ()

    def groups(self) -> list[dict[str, Any]]:
        """Trained parameters with their weight decay."""
        return parameter_groups(self.model, weight_decay=self.plan.weight_decay, no_weight_decay=self.no_weight_decay())

    def before_step(self, progress: Progress) -> None:  # noqa: B027 - nothing by default
        """Set what follows a schedule; called before every optimizer step."""

    def after_step(self) -> None:  # noqa: B027
        """Update what follows the weights; called after every optimizer step."""

    def frozen(self) -> Iterable[nn.Parameter]:
        """Parameters that this step leaves as they are: no gradient, no decay, no moments."""
        return ()

    def baked(self) -> tuple[Hashable, ...] | None:
        """Plain values, besides tensors, that the arithmetic of a step depends on; ``None``: they are not known.

        A step captured as a CUDA graph is captured anew where they change. Of the moment, its loss may then read the
        generator alone.
        """
        return None

    def configuration(self) -> dict[str, Any]:
        """Plain values of the task's configuration, of which every checkpoint keeps a copy."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Plain values that must be the same where a run goes on, by what the user calls them."""
        return {}
