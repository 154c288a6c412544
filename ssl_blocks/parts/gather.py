"""The whole batch of a step, whatever number of processes holds it."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def gathered(x: Float[Tensor, "b *rest"]) -> Float[Tensor, "all *rest"]:
    """Rows of all processes, in the order of their ranks; alone, ``x`` itself.

    For losses that need the whole batch, such as contrasts or covariances. Gradients flow back to every process's own
    rows: where each computes the same loss from the gathered rows and the loop averages gradients over processes (as
    DistributedDataParallel does), the result is the gradient of that loss. All processes must call it alike, with
    equally many rows; accumulated parts of a batch are not gathered.

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
    from torch.distributed.nn.functional import all_gather

    parts: tuple[Tensor, ...] = all_gather(x.contiguous())  # type: ignore[no-untyped-call]
    return torch.cat(parts)
