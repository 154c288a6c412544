"""Parameter groups, optimizer and schedule."""

import math

import torch
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ssl_blocks.engine.settings import OptimizerConfig


def parameter_groups(model: nn.Module, *, weight_decay: float, no_weight_decay: set[str]) -> list[dict[str, object]]:
    """Split trainable parameters into those that decay and those that do not.

    Norms and biases (fewer than two dimensions) and the named ones do not.

    Args:
        model: whose parameters.
        weight_decay: for those that decay.
        no_weight_decay: further names that do not, such as an objective's ``no_weight_decay()``.
    """
    decay: list[nn.Parameter] = []
    spare: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (spare if parameter.ndim < 2 or name in no_weight_decay else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": spare, "weight_decay": 0.0}]


def cosine_weight_decay(start: float, end: float, *, step: int, num_steps: int) -> float:
    """Weight decay of a step, half a cosine from ``start`` to ``end`` (DINO).

    Args:
        start: at step 0.
        end: after the last step.
        step: optimizer steps done.
        num_steps: of the whole run.

    Examples:
        >>> [round(cosine_weight_decay(0.0, 0.4, step=step, num_steps=2), 3) for step in range(3)]
        [0.0, 0.2, 0.4]
    """
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def adamw(model: nn.Module, config: OptimizerConfig, *, no_weight_decay: set[str]) -> torch.optim.AdamW:
    """AdamW over the two groups, fused where the parameters lie on a GPU."""
    groups = parameter_groups(model, weight_decay=config.weight_decay, no_weight_decay=no_weight_decay)
    on_gpu = all(p.is_cuda for p in model.parameters())
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=on_gpu)


def warmup_cosine(
    optimizer: torch.optim.Optimizer, *, num_steps: int, warmup_steps: int, min_lr: float, warmup_start: float = 0.0
) -> Scheduler:
    """Linear warm-up, then half a cosine down to ``min_lr``, set per optimizer step (MAE).

    Args:
        optimizer: whose learning rates are set.
        num_steps: steps of the whole run.
        warmup_steps: steps of the warm-up, counted in.
        min_lr: learning rate after the last step.
        warmup_start: share of the peak at which the warm-up begins.

    Raises:
        ValueError: if the warm-up is not shorter than the run.
    """
    check_warmup(num_steps, warmup_steps)
    return CosineLRScheduler(
        optimizer,
        t_initial=num_steps - warmup_steps,
        lr_min=min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=warmup_start * optimizer.param_groups[0]["lr"],
        warmup_prefix=True,
        t_in_epochs=False,
    )


def check_warmup(num_steps: int, warmup_steps: int) -> None:
    """Refuse a warm-up that leaves no step for the cosine.

    Raises:
        ValueError: if the warm-up is not shorter than the run.
    """
    if warmup_steps >= num_steps:
        raise ValueError(
            f"optimizer.warmup_epochs makes {warmup_steps} warm-up steps, which must be fewer than the "
            f"{num_steps} of the run"
        )
