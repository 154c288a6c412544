"""Facts and neighbours gathered from processes that each hold a part."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """What one process holds: rows of bank and queries, their width, and what is wrong with it, if anything.

    ``num_classes`` is one more than the highest label.
    """

    num_bank: int
    num_queries: int
    width: int
    num_classes: int
    error: str | None = None


def gather_parts(part: Shard) -> list[Shard]:
    """Parts of all processes, in the order of their ranks.

    All processes learn of an error in one of them; else the others would wait for it for ever.
    """
    parts: list[Shard] = [part] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    for rank, other in enumerate(parts):
        if other.error is not None:
            raise ValueError(f"process {rank}: {other.error}")
        if other.width != parts[0].width:
            raise ValueError(f"process {rank}: features of width {other.width} must be as wide as {parts[0].width}")
    return parts


def merge_neighbours(
    similarity: Float[Tensor, "m j"], labels: Int[Tensor, "m j"], *, k: int
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """The k nearest among those that each process has found in its part of the bank.

    Similarities ``[M, j]`` are of the same queries in all processes; ``j`` may be less than ``k``. What is returned,
    similarities ``[M, k]``, falling, and labels ``[M, k]``, is the same in all of them.
    """
    padded = similarity.new_full((len(similarity), k), -torch.inf)
    named = labels.new_zeros(len(labels), k)
    padded[:, : similarity.shape[1]], named[:, : labels.shape[1]] = similarity, labels
    world = dist.get_world_size()
    all_padded = [torch.empty_like(padded) for _ in range(world)]
    all_named = [torch.empty_like(named) for _ in range(world)]
    dist.all_gather(all_padded, padded)
    dist.all_gather(all_named, named)
    best, kept = torch.cat(all_padded, 1).topk(k, dim=1)
    return best, torch.cat(all_named, 1).gather(1, kept)
