"""Parameter groups and schedules."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn


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
    ``layer_decay ** (last - i)`` times the rate (``lr_scale``, which timm's schedulers honour; BEiT, MAE).

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


def warmup_cosine(
    optimizer: torch.optim.Optimizer,
    *,
    num_steps: int,
    warmup_steps: int,
    min_lr: float = 0.0,
    warmup_start: float = 0.0,
) -> Scheduler:
    """Linear warm-up, then half a cosine down to ``min_lr``, set per optimizer step (MAE).

    timm's schedulers honour ``lr_scale`` of a group; torch's do not.

    Args:
        optimizer: whose learning rates are set, those of step 0 at once; call ``step_update(step)`` before each step.
        num_steps: steps of the whole run.
        warmup_steps: steps of the warm-up, counted in.
        min_lr: learning rate after the last step.
        warmup_start: share of the peak at which the warm-up begins.

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
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=num_steps - warmup_steps,
        lr_min=min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=warmup_start * optimizer.param_groups[0]["lr"],
        warmup_prefix=True,
        t_in_epochs=False,
    )
    if any("lr_scale" in group for group in optimizer.param_groups):
        schedule.step_update(0)  # without a warm-up, timm begins with rates that are not scaled
    return schedule
