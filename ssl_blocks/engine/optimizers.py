"""Parameter groups and schedules."""

import math
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    no_weight_decay: Collection[str],
    layers: Mapping[str, int] | None = None,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Split trainable parameters into those that decay and those that do not, and by layer where layers are given.

    Norms and biases (fewer than two dimensions) and the named ones do not decay. Layer ``i`` learns at
    ``layer_decay ** (last - i)`` times the rate (``lr_scale``, which `Schedule` honours; BEiT, MAE).

    Args:
        model: whose parameters.
        weight_decay: for those that decay.
        no_weight_decay: further names that do not, such as an objective's ``no_weight_decay()``.
        layers: layer of every parameter by its name, from 0; ``None`` lets all learn alike, in two groups.
        layer_decay: factor from each layer to the one before it.

    Examples:
        >>> groups = parameter_groups(nn.Linear(2, 2), weight_decay=0.1, no_weight_decay=())
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(1, 0.1), (1, 0.0)]
    """
    numbers = sorted(set(layers.values())) if layers is not None else [0]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for number in numbers:
        scale = {} if layers is None else {"lr_scale": layer_decay ** (numbers[-1] - number)}
        for decays in (True, False):
            groups[number, decays] = {"params": [], "weight_decay": weight_decay if decays else 0.0, **scale}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and name not in no_weight_decay
            groups[layers[name] if layers is not None else 0, decays]["params"].append(parameter)
    return list(groups.values())


def cosine_weight_decay(start: float, end: float, *, step: int, num_steps: int) -> float:
    """Weight decay of a step, half a cosine from ``start`` at step 0 to ``end`` after the last step (DINO).

    Examples:
        >>> [round(cosine_weight_decay(0.0, 0.4, step=step, num_steps=2), 3) for step in range(3)]
        [0.0, 0.2, 0.4]
    """
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / num_steps))


class Schedule:
    """Learning rates that are a function of the step alone: a run of another length goes on by that length's.

    A group's own rate at the beginning is its peak; ``lr_scale`` of a group scales what it gets (timm's convention).
    ``rate`` leads from step and peak to the learning rate. Those of step 0 are set at once; call ``step_update(step)``
    before each step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rate: Callable[[int, float], float]) -> None:
        self.optimizer, self.rate = optimizer, rate
        self.peaks: list[float] = [group["lr"] for group in optimizer.param_groups]
        self.step_update(0)

    def step_update(self, step: int) -> None:
        """Set the rates of a step, counted from 0."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = self.rate(step, peak) * group.get("lr_scale", 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step tells all."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""


def warmup_cosine(
    optimizer: torch.optim.Optimizer,
    *,
    num_steps: int,
    warmup_steps: int,
    min_lr: float = 0.0,
    warmup_start: float = 0.0,
    ends_at_peak: bool = False,
) -> Schedule:
    """Linear warm-up, then half a cosine down to ``min_lr``, set per optimizer step (MAE).

    Args:
        optimizer: whose learning rates are set.
        num_steps: steps of the whole run.
        warmup_steps: steps of the warm-up, counted in.
        min_lr: learning rate after the last step.
        warmup_start: share of the peak at which the warm-up begins.
        ends_at_peak: whether the last step of the warm-up has the peak rate already, as in DINO's and EsViT's code:
            step i of n learns at i / (n - 1) of it. In MAE's it is i / n, and the first step after it has the peak.

    Raises:
        ValueError: if the warm-up is not shorter than the run.

    Examples:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule, rates = warmup_cosine(optimizer, num_steps=6, warmup_steps=2), []
        >>> for step in range(6):
        ...     schedule.step_update(step)
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 2))
        >>> rates
        [0.0, 0.5, 1.0, 0.85, 0.5, 0.15]
    """
    if warmup_steps >= num_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must be fewer than num_steps={num_steps}")
    rises, falls = max(1, warmup_steps - ends_at_peak), num_steps - warmup_steps

    def rate(step: int, peak: float) -> float:
        if step < warmup_steps:
            first = warmup_start * peak
            return first + step * ((peak - first) / rises)
        if step >= num_steps:
            return min_lr
        return min_lr + 0.5 * (peak - min_lr) * (1 + math.cos(math.pi * (step - warmup_steps) / falls))

    return Schedule(optimizer, rate)


def chained_by_epoch(
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int,
    min_lr: float = 0.0,
    warmup_start: float = 0.0,
) -> Schedule:
    """Linear warm-up chained with half a cosine over all epochs, both set once an epoch (APL's code).

    It is torch's ``ChainedScheduler`` of ``LinearLR`` and ``CosineAnnealingLR``, whose factors act together: the cosine
    falls while the warm-up rises, so that the peak is not quite reached. ``warmup_start``, above 0, is the share of the
    peak at which the warm-up begins; ``min_lr`` comes after the last epoch.

    Examples:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> sizes = {"epochs": 4, "steps_per_epoch": 2, "warmup_epochs": 1, "min_lr": 0.1, "warmup_start": 0.5}
        >>> schedule, rates = chained_by_epoch(optimizer, **sizes), []
        >>> for step in range(8):
        ...     schedule.step_update(step)
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 3))
        >>> rates
        [0.5, 0.5, 0.868, 0.868, 0.55, 0.55, 0.232, 0.232]
    """

    @cache
    def rates(peak: float) -> list[float]:
        stand_in = torch.optim.SGD([torch.zeros(1)], lr=peak)
        chain: list[Any] = [CosineAnnealingLR(stand_in, epochs, min_lr)]
        if warmup_epochs:
            chain.insert(0, LinearLR(stand_in, warmup_start, total_iters=warmup_epochs))
        chained, found = ChainedScheduler(chain), []
        for _ in range(epochs + 1):
            found.append(float(stand_in.param_groups[0]["lr"]))
            stand_in.step()
            chained.step()
        return found

    return Schedule(optimizer, lambda step, peak: rates(peak)[min(step // steps_per_epoch, epochs)])
