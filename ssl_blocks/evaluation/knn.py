"""Weighted nearest-neighbour classification of frozen features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.bounds import Count, Positive
from ssl_blocks.doors import checked
from ssl_blocks.evaluation.checks import check_features


@checked
def knn_accuracy(
    bank: Float[Tensor, "n d"],  # whether axes fit is said by all processes alike, below
    bank_labels: Int[Tensor, " n_labels"],
    queries: Float[Tensor, "m d_queries"],
    query_labels: Int[Tensor, " m_labels"],
    *,
    k: Count = 20,
    temperature: Positive = 0.07,
    chunk: Count = 4096,
    bank_sharded: bool = False,
    queries_sharded: bool = False,
) -> float:
    """Share of queries, 0..1, that their nearest neighbours classify correctly.

    Neighbours are nearest by cosine similarity ``s`` and vote with weight ``exp(s / temperature)`` (Wu et al.
    2018, Sec. 3.4; DINO uses the same).

    Processes may share the work: all of them call this function, each with rows of its own and no row in two of them.
    Parts may differ in size or be empty. All get the accuracy that a single process would find with all rows.

    Args:
        bank: ``[N, D]`` features that vote.
        bank_labels: ``[N]`` class indices.
        queries: ``[M, D]`` features that are classified, on the bank's device.
        query_labels: ``[M]`` class indices.
        k: number of neighbours that vote, within 1..N.
        temperature: the smaller, the more the nearest outweigh the others.
        chunk: rows of bank and queries that are compared at a time; memory grows with its square, not with the bank.
        bank_sharded: whether each process holds a part of the bank; else all hold the whole of it.
        queries_sharded: the same of the queries.

    Raises:
        ValueError: if a number is out of range, shapes do not fit together, features are not finite, a label is
            negative, or something is sharded without ``torch.distributed``. With shards, all processes raise it.

    Examples:
        >>> bank = torch.eye(2)
        >>> knn_accuracy(bank, torch.tensor([0, 1]), bank, torch.tensor([0, 0]), k=1)
        0.5
    """
    sharded = bank_sharded or queries_sharded
    if sharded and not dist.is_initialized():
        raise ValueError("bank_sharded and queries_sharded need torch.distributed.init_process_group before")
    sides = (("bank", bank, bank_labels, bank_sharded), ("query", queries, query_labels, queries_sharded))
    parts = [_describe(sides)]
    if sharded:
        parts = gather_parts(parts[0])
    elif parts[0].error:
        raise ValueError(parts[0].error)
    num_bank = sum(part.num_bank for part in parts) if bank_sharded else len(bank)
    if queries_sharded and not any(part.num_queries for part in parts):
        raise ValueError("queries must be at least one in all processes together")
    if k > num_bank:
        raise ValueError(f"k={k} must be at least 1 and at most the size of the bank ({num_bank})")
    num_classes = max(part.num_classes for part in parts)
    predicted = [bank_labels[:0]]  # a process may have no queries
    counts = [part.num_queries for part in parts] if bank_sharded and queries_sharded else None
    found = _neighbours(queries, bank, bank_labels, k=k, chunk=chunk, sharded=bank_sharded, counts=counts)
    for similarity, labels in found:
        # the nearest one's weight is taken out of all: no overflow at low temperatures, the same winner
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(labels), num_classes).scatter_add_(1, labels, weight)
        predicted.append(votes.argmax(1))
    hits = torch.cat(predicted) == query_labels.to(bank.device)
    counted = torch.tensor([int(hits.sum()), len(hits)], device=bank.device)
    if queries_sharded:
        dist.all_reduce(counted)
    return float(counted[0] / counted[1])


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


def _neighbours(
    queries: Tensor, bank: Tensor, labels: Tensor, *, k: int, chunk: int, sharded: bool, counts: list[int] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Similarities and labels of the neighbours of this process' queries, some rows at a time.

    ``counts`` are the queries of every process, where each holds a part and has to ask all others; else ``None``.
    """

    def find(rows: Tensor) -> tuple[Tensor, Tensor]:
        similarity, index = nearest(rows, bank, k=k, chunk=chunk)
        return merge_neighbours(similarity, labels[index], k=k) if sharded else (similarity, labels[index])

    if counts is None:
        yield from map(find, torch.split(queries, chunk))
        return
    for owner, count in enumerate(counts):
        for start in range(0, count, chunk):
            mine = owner == dist.get_rank()
            size = min(chunk, count - start)
            rows = queries[start : start + size] if mine else queries.new_empty(size, queries.shape[1])
            rows = rows.float().contiguous()
            dist.broadcast(rows, src=owner)
            found = find(rows)
            if mine:
                yield found


def nearest(
    queries: Float[Tensor, "m d"], bank: Float[Tensor, "n d"], *, k: int, chunk: int
) -> tuple[Float[Tensor, "m j"], Int[Tensor, "m j"]]:
    """The k rows of the bank nearest to each query by cosine, or all N, looking at ``chunk`` rows of it at a time.

    Returns similarities ``[M, j]``, falling, and rows of the bank ``[M, j]``.
    """
    queries = F.normalize(queries.float(), dim=1)
    best = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), chunk):
        rows = F.normalize(bank[start : start + chunk].float(), dim=1)
        numbers = torch.arange(start, start + len(rows), device=queries.device).expand(len(queries), -1)
        best, index = torch.cat((best, queries @ rows.T), 1), torch.cat((index, numbers), 1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        index = index.gather(1, kept)
    return best, index


def _describe(sides: Sequence[tuple[str, Tensor, Tensor, bool]]) -> Shard:
    """Check bank and queries, each with its name, its labels, and whether each process has a part of it."""
    (bank, queries), error, num_classes = [features for _, features, _, _ in sides], None, 0
    try:
        for name, features, labels, sharded in sides:
            check_features(name, features, labels, may_be_empty=sharded)
            if len(labels) and int(labels.min()) < 0:
                raise ValueError(f"{name}_labels must be class indices from 0, but the smallest is {int(labels.min())}")
            num_classes = max(num_classes, int(labels.max()) + 1 if len(labels) else 0)
        if bank.shape[1:] != queries.shape[1:]:
            raise ValueError(
                f"queries of shape {tuple(queries.shape)} must have as many features as the bank, {tuple(bank.shape)}"
            )
    except ValueError as wrong:
        error = str(wrong)
    return Shard(len(bank), len(queries), bank.shape[-1], num_classes, error)
