import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_blocks.evaluation import knn_accuracy
from ssl_blocks.evaluation.knn import nearest


def draw(count: int, seed: int, classes: int = 5, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Noisy classes, so that neighbours disagree."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 2 * torch.randn(count, dim, generator=generator), labels


def reference(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, k: int, t: float) -> float:
    """One query after the other, all neighbours sorted."""
    correct = 0
    for query, label in zip(queries, query_labels.tolist(), strict=True):
        similarity = torch.cosine_similarity(query[None], bank).tolist()
        votes: dict[int, float] = {}
        for i in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
            neighbour = int(bank_labels[i])
            votes[neighbour] = votes.get(neighbour, 0.0) + math.exp(similarity[i] / t)
        correct += max(votes, key=lambda c: votes[c]) == label
    return correct / len(queries)


@pytest.mark.parametrize("k", [1, 7, 60])
@pytest.mark.parametrize("temperature", [0.07, 10.0])
def test_accuracy_equals_brute_force(k: int, temperature: float) -> None:
    data = (*draw(60, 0), *draw(50, 1))
    expected = reference(*data, k, temperature)
    assert knn_accuracy(*data, k=k, temperature=temperature) == pytest.approx(expected)
    assert 0.1 < expected < 1


@pytest.mark.parametrize("chunk", [7, 60])
def test_chunks_change_nothing(chunk: int) -> None:
    data = (*draw(60, 0), *draw(50, 1))
    assert knn_accuracy(*data, k=9, chunk=chunk) == knn_accuracy(*data, k=9)


@pytest.mark.parametrize("chunk", [3, 11, 100])
def test_nearest_equals_sorting_all(chunk: int) -> None:
    bank, queries = draw(40, 0)[0], draw(10, 1)[0]
    similarity, index = nearest(queries, bank, k=12, chunk=chunk)
    expected = torch.cosine_similarity(queries[:, None], bank[None], dim=2).sort(dim=1, descending=True)
    assert torch.equal(index, expected.indices[:, :12])
    torch.testing.assert_close(similarity, expected.values[:, :12])


def test_weights_decide_between_near_and_many() -> None:
    bank = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    data = (bank, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert knn_accuracy(*data, k=3, temperature=0.07) == 1
    assert knn_accuracy(*data, k=3, temperature=100.0) == 0


def test_length_of_features_is_ignored() -> None:
    (bank, bank_labels), (queries, query_labels) = draw(60, 0), draw(50, 1)
    scaled = bank * torch.rand(60, 1, generator=torch.Generator().manual_seed(0)).add(0.1)
    expected = knn_accuracy(bank, bank_labels, queries, query_labels, k=5)
    assert knn_accuracy(scaled, bank_labels, 100 * queries, query_labels, k=5) == expected


def test_low_temperature_does_not_overflow() -> None:
    data = (*draw(60, 0), *draw(50, 1))
    assert knn_accuracy(*data, k=20, temperature=1e-4) == knn_accuracy(*data, k=1)


def test_class_that_is_not_in_the_bank_counts_as_wrong() -> None:
    bank = torch.eye(2)
    assert knn_accuracy(bank, torch.tensor([0, 1]), bank, torch.tensor([0, 7]), k=1) == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k=0 must be at least 1"),
        ({"k": 11}, r"k=11 must be at least 1 and at most the size of the bank \(10\)"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn_accuracy(*draw(10, 0), *draw(5, 1), **{"k": 3, **arguments})


def test_wrong_labels() -> None:
    (bank, bank_labels), (queries, query_labels) = draw(10, 0), draw(5, 1)
    with pytest.raises((ValueError, TypeError), match="bank_labels"):
        knn_accuracy(bank, bank_labels[1:], queries, query_labels, k=1)
    with pytest.raises(ValueError, match="query_labels must be class indices from 0, but the smallest is -1"):
        knn_accuracy(bank, bank_labels, queries, torch.full_like(query_labels, -1), k=1)
    with pytest.raises((ValueError, TypeError), match="queries"):
        knn_accuracy(bank, bank_labels, queries[:, 1:], query_labels, k=1)
    with pytest.raises(ValueError, match=r"query_labels of shape \(0,\) must be .* at least one"):
        knn_accuracy(bank, bank_labels, queries[:0], query_labels[:0], k=1)
    with pytest.raises((ValueError, TypeError), match="query_labels"):
        knn_accuracy(bank, bank_labels, queries, query_labels.float(), k=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["bank", "query"])
def test_one_broken_feature_is_an_error(value: float, name: str) -> None:
    (bank, bank_labels), (queries, query_labels) = draw(10, 0), draw(5, 1)
    (bank if name == "bank" else queries)[3, 2] = value
    with pytest.raises(ValueError, match=f"{name} features must be finite, but 1 of .* first row 3"):
        knn_accuracy(bank, bank_labels, queries, query_labels, k=1)
