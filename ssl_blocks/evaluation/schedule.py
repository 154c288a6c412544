"""Warm-up and cosine of the evaluations that train."""

import torch
from timm.scheduler import CosineLRScheduler


def warmup_cosine(
    optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, epochs: int, warmup_epochs: float | int
) -> CosineLRScheduler:
    """Every group's rate goes linearly up from 0 and then along half a cosine down to 0, set before every step (MAE).

    timm's schedulers honour ``lr_scale`` of a group; torch's do not.

    Args:
        optimizer: whose rates are set; call ``step_update(step)`` before each step.
        steps_per_epoch: steps of one epoch.
        epochs: of the whole run.
        warmup_epochs: of the warm-up, counted in.

    Raises:
        ValueError: if the warm-up is not shorter than the run.

    Examples:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule, rates = warmup_cosine(optimizer, steps_per_epoch=1, epochs=6, warmup_epochs=2), []
        >>> for step in range(6):
        ...     schedule.step_update(step)
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 2))
        >>> rates
        [0.0, 0.5, 1.0, 0.85, 0.5, 0.15]
    """
    num_steps, warmup_steps = steps_per_epoch * epochs, round(steps_per_epoch * warmup_epochs)
    if warmup_steps >= num_steps:
        raise ValueError(f"warmup_epochs={warmup_epochs} must be fewer than epochs={epochs}")
    return CosineLRScheduler(
        optimizer,
        t_initial=num_steps - warmup_steps,
        warmup_t=warmup_steps,
        warmup_prefix=True,
        t_in_epochs=False,
    )
