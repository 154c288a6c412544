"""Weighted nearest-neighbour classification of frozen features."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.evaluation.checks import check_features
from ssl_blocks.evaluation.shards import Shard, gather_parts, merge_neighbours


def knn_accuracy(
    bank: Float[Tensor, "n d"],
    bank_labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    query_labels: Int[Tensor, " m"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 4096,
    bank_sharded: bool = False,
    queries_sharded: bool = False,
) -> float:
    """Share of queries that their nearest neighbours classify correctly.

    Neighbours are nearest by cosine similarity ``s`` and vote with weight ``exp(s / temperature)`` (Wu et al.
    2018, Sec. 3.4; DINO uses the same).

    Processes may share the work: all of them call this function, each with rows of its own and no row in two of them.
    Parts may differ in size or be empty. All get the accuracy that a single process would find with all rows.

    Args:
        bank: ``[N, D]`` features that vote.
        bank_labels: ``[N]`` class indices.
        queries: ``[M, D]`` features that are classified, on the bank's device.
        query_labels: ``[M]`` class indices.
        k: number of neighbours that vote.
        temperature: the smaller, the more the nearest outweigh the others.
        chunk: rows of bank and queries that are compared at a time; memory grows with its square, not with
            the bank.
        bank_sharded: whether each process holds a part of the bank; else all hold the whole of it.
        queries_sharded: whether each process holds a part of the queries; else all hold the same.

    Returns:
        Accuracy, 0..1.

    Raises:
        ValueError: if ``k`` is not within 1..N, ``temperature`` or ``chunk`` is not positive, shapes do not fit
            together, features are not finite, a label is negative, or something is sharded although
            ``torch.distributed`` was not set up. With shards, all processes raise it.

    Examples:
        >>> bank = torch.eye(2)
        >>> knn_accuracy(bank, torch.tensor([0, 1]), bank, torch.tensor([0, 0]), k=1)
        0.5
    """
    # a heavy import, for one call at the end of a run
    from torchmetrics.classification import MulticlassAccuracy

    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0")
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    sharded = bank_sharded or queries_sharded
    if sharded and not dist.is_initialized():
        raise ValueError("bank_sharded and queries_sharded need torch.distributed.init_process_group before")
    parts = [_describe(bank, bank_labels, queries, query_labels, bank_sharded, queries_sharded)]
    if sharded:
        parts = gather_parts(parts[0])
    elif parts[0].error:
        raise ValueError(parts[0].error)
    _check_sizes(parts, k, bank_sharded, queries_sharded)
    num_classes = max(part.num_classes for part in parts)
    search = _Search(bank=bank, labels=bank_labels, k=k, chunk=chunk, sharded=bank_sharded)
    metric = MulticlassAccuracy(
        num_classes, average="micro", ignore_index=-1, validate_args=False, sync_on_compute=queries_sharded
    ).to(bank.device)
    # one row that does not count in front: torchmetrics takes no empty update, and a process may have no queries
    predicted = [torch.zeros(1, dtype=torch.int64, device=bank.device)]
    counts = [part.num_queries for part in parts] if bank_sharded and queries_sharded else None
    for similarity, labels in search.all_queries(queries, counts):
        # the nearest one's weight is taken out of all: no overflow at low temperatures, the same winner
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(labels), num_classes).scatter_add_(1, labels, weight)
        predicted.append(votes.argmax(1))
    metric.update(torch.cat(predicted), F.pad(query_labels.to(bank.device), (1, 0), value=-1))
    return float(metric.compute())


@dataclass(frozen=True, kw_only=True)
class _Search:
    """Neighbours in a bank, or in the parts of it that all processes hold."""

    bank: Tensor
    labels: Tensor
    k: int
    chunk: int
    sharded: bool

    def all_queries(self, queries: Tensor, counts: list[int] | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Similarities and labels of the neighbours of this process' queries, some rows at a time.

        ``counts`` are the queries of every process, where each holds a part and has to ask all others; else ``None``.
        """
        if counts is None:
            for start in range(0, len(queries), self.chunk):
                yield self._find(queries[start : start + self.chunk])
            return
        for owner, count in enumerate(counts):
            for start in range(0, count, self.chunk):
                mine = owner == dist.get_rank()
                size = min(self.chunk, count - start)
                rows = queries[start : start + size] if mine else queries.new_empty(size, queries.shape[1])
                rows = rows.float().contiguous()
                dist.broadcast(rows, src=owner)
                found = self._find(rows)
                if mine:
                    yield found

    def _find(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        similarity, index = nearest(queries, self.bank, k=self.k, chunk=self.chunk)
        labels = self.labels[index]
        return merge_neighbours(similarity, labels, k=self.k) if self.sharded else (similarity, labels)


def nearest(
    queries: Float[Tensor, "m d"], bank: Float[Tensor, "n d"], *, k: int, chunk: int
) -> tuple[Float[Tensor, "m j"], Int[Tensor, "m j"]]:
    """Find the k rows of the bank nearest to each query by cosine, looking at ``chunk`` rows of it at a time.

    Returns:
        Similarities ``[M, j]``, falling, and rows of the bank ``[M, j]``, where ``j`` is the smaller of k and N.
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


def _describe(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, bank_sharded: bool, queries_sharded: bool
) -> Shard:
    error, num_classes = None, 0
    try:
        _check(bank, bank_labels, queries, query_labels, bank_sharded, queries_sharded)
        num_classes = max(int(labels.max()) + 1 if len(labels) else 0 for labels in (bank_labels, query_labels))
    except ValueError as wrong:
        error = str(wrong)
    return Shard(len(bank), len(queries), bank.shape[-1], num_classes, error)


def _check(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, bank_sharded: bool, queries_sharded: bool
) -> None:
    for name, features, labels, sharded in (
        ("bank", bank, bank_labels, bank_sharded),
        ("query", queries, query_labels, queries_sharded),
    ):
        check_features(name, features, labels, may_be_empty=sharded)
        if len(labels) and int(labels.min()) < 0:
            raise ValueError(f"{name}_labels must be class indices from 0, but the smallest is {int(labels.min())}")
    if bank.shape[1:] != queries.shape[1:]:
        raise ValueError(
            f"queries of shape {tuple(queries.shape)} must have as many features as the bank, {tuple(bank.shape)}"
        )


def _check_sizes(parts: list[Shard], k: int, bank_sharded: bool, queries_sharded: bool) -> None:
    num_bank = sum(part.num_bank for part in parts) if bank_sharded else parts[0].num_bank
    if queries_sharded and not any(part.num_queries for part in parts):
        raise ValueError("queries must be at least one in all processes together")
    if not 1 <= k <= num_bank:
        raise ValueError(f"k={k} must be at least 1 and at most the size of the bank ({num_bank})")
