"""What happens to gradients between the backward pass and the optimizer's step."""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssl_blocks.engine.checkpoints import numbers_of
from ssl_blocks.engine.masters import MasterAdamW
from ssl_blocks.engine.parallel import one_for_none, sum_over_processes
from ssl_blocks.engine.watch import Verdict, largest

if TYPE_CHECKING:
    from ssl_blocks.engine.loop import Loop


def finish_gradients(
    parameters: Sequence[nn.Parameter],
    counted: Tensor,
    *,
    sum_of: Tensor | None,
    clip: float | None,
    halted: Tensor | None = None,
    watched: bool = True,
) -> tuple[Tensor, Verdict]:
    """Divide by what counts in the whole step, known only now; clip; and see whether all are finite.

    All parameters have a gradient. ``counted`` is the summed loss of this process, and what it is to be divided by
    ``[2]``; returned is that of all. Where a step has parts, ``sum_of`` is what a loss of 1 was weighed by in all of
    them. ``halted`` becomes 1 where loss or gradients are not finite, and stays so; ``watched`` tells whether gradients
    are looked at.
    """
    sizes = largest(local(parameter.grad) for parameter in parameters)
    if sum_of is not None:
        counted, sizes = sum_over_processes(torch.cat([counted, sizes.to(counted)])).tensor_split([2])
        # gradients are means over processes and accumulated batches of sums: exactly 1 where parts count alike
        scale = sum_of / one_for_none(counted[1])
        torch._foreach_mul_([local(parameter.grad) for parameter in parameters], scale)
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    verdict = Verdict(torch.cat([counted[:1].to(sizes), sizes] if watched else [counted[:1]]).detach(), parameters)
    if halted is not None:
        halted.copy_(torch.maximum(halted, verdict.is_bad()))
    return counted, verdict


@torch.no_grad()
def decay(parameters: Sequence[nn.Parameter], kept: Tensor | float, halted: Tensor | None) -> None:
    """Multiply parameters by what decay leaves of them, unless a step was bad."""
    if parameters:
        kept = kept if halted is None else torch.where(halted > 0, 1.0, kept)
        torch._foreach_mul_([local(parameter) for parameter in parameters], kept)


def name_of(loop: "Loop", parameter: nn.Parameter) -> str:
    """The name in the model of a parameter that the optimizer updates."""
    if isinstance(loop.optimizer, MasterAdamW):
        pairs = zip(loop.optimizer.masters, loop.optimizer.weights, strict=True)
        parameter = next((weight for master, weight in pairs if master is parameter), parameter)
    return next(name for name, other in loop.model.named_parameters() if other is parameter)


def unbounded(loop: nn.Module) -> frozenset[str]:
    """What is not finite from the beginning, and is not trained: a table of masks, say."""
    trained = {name for name, parameter in loop.named_parameters() if parameter.requires_grad}
    state = {name: local(value) for name, value in numbers_of(loop.state_dict()).items() if name not in trained}
    return frozenset(name for name, x in zip(state, largest(state.values()).tolist(), strict=True) if not isfinite(x))


def local(values: Any) -> Tensor:
    """A process's own share of values that are dealt out."""
    found: Tensor = values.to_local() if hasattr(values, "to_local") else values
    return found
