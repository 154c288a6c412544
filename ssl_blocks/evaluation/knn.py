"""Weighted nearest-neighbour classification of frozen features."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.evaluation.checks import check_labels


def knn_accuracy(
    bank: Float[Tensor, "n d"],
    bank_labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    query_labels: Int[Tensor, " m"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 4096,
) -> float:
    """Share of queries that their nearest neighbours classify correctly.

    Neighbours are nearest by cosine similarity ``s`` and vote with weight ``exp(s / temperature)`` (Wu et al.
    2018, Sec. 3.4; DINO uses the same).

    Args:
        bank: ``[N, D]`` features that vote.
        bank_labels: ``[N]`` class indices.
        queries: ``[M, D]`` features that are classified, on the bank's device.
        query_labels: ``[M]`` class indices.
        k: number of neighbours that vote.
        temperature: the smaller, the more the nearest outweigh the others.
        chunk: rows of bank and queries that are compared at a time; memory grows with its square, not with
            the bank.

    Returns:
        Accuracy, 0..1.

    Raises:
        ValueError: if ``k`` is not within 1..N, ``temperature`` or ``chunk`` is not positive, shapes do not
            fit together, or a label is negative.

    Examples:
        >>> bank = torch.eye(2)
        >>> knn_accuracy(bank, torch.tensor([0, 1]), bank, torch.tensor([0, 0]), k=1)
        0.5
    """
    # a heavy import, for one call at the end of a run
    from torchmetrics.functional.classification import multiclass_accuracy

    _check(bank, bank_labels, queries, query_labels)
    if not 1 <= k <= len(bank):
        raise ValueError(f"k={k} must be at least 1 and at most the size of the bank ({len(bank)})")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0")
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    num_classes = int(torch.maximum(bank_labels.max(), query_labels.max())) + 1
    predicted = []
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        similarity, neighbour = nearest(part, bank, k=k, chunk=chunk)
        # the nearest one's weight is taken out of all: no overflow at low temperatures, the same winner
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(part), num_classes).scatter_add_(1, bank_labels[neighbour], weight)
        predicted.append(votes.argmax(1))
    accuracy = multiclass_accuracy(
        torch.cat(predicted), query_labels, num_classes=num_classes, average="micro", validate_args=False
    )
    return float(accuracy)


def nearest(
    queries: Float[Tensor, "m d"], bank: Float[Tensor, "n d"], *, k: int, chunk: int
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """Find the k rows of the bank nearest to each query by cosine, looking at ``chunk`` rows of it at a time.

    Returns:
        Similarities ``[M, k]``, falling, and rows of the bank ``[M, k]``.
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


def _check(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor) -> None:
    for name, features, labels in (("bank", bank, bank_labels), ("query", queries, query_labels)):
        check_labels(f"{name}_labels", features, labels)
        if int(labels.min()) < 0:
            raise ValueError(f"{name}_labels must be class indices from 0, but the smallest is {int(labels.min())}")
    if bank.shape[1:] != queries.shape[1:]:
        raise ValueError(
            f"queries of shape {tuple(queries.shape)} must have as many features as the bank, {tuple(bank.shape)}"
        )
