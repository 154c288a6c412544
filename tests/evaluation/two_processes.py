"""Nearest neighbours in as many processes as torchrun started, each with rows of its own.

Run by tests/two_processes.py; every rank writes its accuracies and the errors that it heard.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_blocks.evaluation import knn_accuracy

ARGUMENTS = {"k": 9, "chunk": 7}
BANK, QUERIES = 41, 23
# how many rows the first of two processes holds: parts of unequal size, fewer rows than neighbours, none at all
CUTS = [(20, 11), (38, 23), (41, 0), (5, 22)]


def draw(count: int, seed: int, classes: int = 5, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Noisy classes, so that neighbours disagree."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 2 * torch.randn(count, dim, generator=generator), labels


def part(rows: Tensor, cut: int) -> Tensor:
    return rows[:cut] if dist.get_rank() == 0 else rows[cut:]


def accuracies() -> dict[str, float]:
    bank, queries = draw(BANK, 0), draw(QUERIES, 1)
    found = {}
    for at, (bank_cut, query_cut) in enumerate(CUTS):
        for sharded in ("bank", "queries", "both"):
            b = [part(x, bank_cut) for x in bank] if sharded != "queries" else bank
            q = [part(x, query_cut) for x in queries] if sharded != "bank" else queries
            found[f"{sharded}-{at}"] = knn_accuracy(
                *b, *q, bank_sharded=sharded != "queries", queries_sharded=sharded != "bank", **ARGUMENTS
            )
    return found


def errors() -> list[str]:
    """What both processes hear where one of them holds something wrong."""
    bank, queries = draw(BANK, 0), draw(QUERIES, 1)
    heard = []
    for wrong in range(3):
        labels = part(bank[1], 20) - (10 if wrong == 0 and dist.get_rank() == 1 else 0)
        rows = part(bank[0], 20)
        if wrong == 1 and dist.get_rank() == 0:
            labels = labels[1:]
        try:
            knn_accuracy(
                rows, labels, *queries, bank_sharded=True, k=BANK + 1 if wrong == 2 else 3, queries_sharded=False
            )
        except ValueError as error:
            heard.append(str(error))
    return heard


def main(folder: Path) -> None:
    torch.save((accuracies(), errors()), folder / f"{dist.get_rank()}.pt")
