"""The whole batch of a step, whatever number of processes holds it."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from ssl_blocks.doors import checked


@checked
def gathered(x: Float[Tensor, "b *rest"]) -> Float[Tensor, "all *rest"]:
    """Rows of all processes, in the order of their ranks; alone, ``x`` itself.

    For losses that need the whole batch, such as contrasts or covariances. Gradients flow back to every process's own
    rows: where each computes the same loss from the gathered rows and the loop averages gradients over processes (as
    DistributedDataParallel does), the result is the gradient of that loss. All processes must call it alike, with
    equally many rows; accumulated parts of a batch are not gathered, which a part that uses it says by
    ``per_part = True`` (see `Objective`).

    Args:
        x: ``[B, ...]``.

    Returns:
        ``[processes * B, ...]``.

    Examples:
        >>> gathered(torch.ones(2, 3)).shape  # one process
        torch.Size([2, 3])
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    whole: Tensor = _Gathered.apply(x)
    return whole


class _Gathered(torch.autograd.Function):
    """Gather rows; sum up the gradients of a process's own rows over all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *outgoing: Tensor) -> Tensor:
        # not reduce_scatter_tensor: torch renames it between the versions that are supported here
        whole = outgoing[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]
