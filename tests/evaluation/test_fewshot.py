import statistics
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_blocks.evaluation import ProbeScore, fewshot_probe
from ssl_blocks.evaluation.fewshot import draw_shots


def draw(count: int, seed: int, classes: int = 4, noise: float = 1.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = 2 * torch.eye(classes, 6)
    return centres[labels] + noise * torch.randn(count, 6, generator=generator), labels


def test_shots_are_so_many_of_each_class_and_follow_the_generator() -> None:
    labels = torch.tensor([2, 0, 2, 0, 2, 0, 2, 0, 0, 2, 0, 2])
    chosen = draw_shots(labels, labels, 4, torch.Generator().manual_seed(0))
    assert labels[chosen].tolist() == [0] * 4 + [2] * 4
    assert len(set(chosen.tolist())) == 8
    assert torch.equal(chosen, draw_shots(labels, labels, 4, torch.Generator().manual_seed(0)))
    assert not torch.equal(chosen, draw_shots(labels, labels, 4, torch.Generator().manual_seed(1)))


def test_probe_equals_standardising_by_hand() -> None:
    (x, y), (test_x, test_y) = draw(40, 0), draw(100, 1)
    x, test_x = x * 100 + 7, test_x * 100 + 7
    score = fewshot_probe(x, y, test_x, test_y, shots=10, seeds=(5,), c=0.01)  # all labels are drawn
    mean, std = x.mean(0), x.std(0, correction=0)
    expected = LogisticRegression(C=0.01).fit((x - mean) / std, y).score((test_x - mean) / std, test_y)
    assert score == ProbeScore(mean=score.mean, std=0.0, per_seed=(score.mean,))
    assert score.mean == pytest.approx(expected)
    assert 0.4 < expected < 1


@pytest.mark.parametrize(("classes", "dim"), [(2, 6), (4, 6), (2, 90), (4, 90)])
def test_probe_says_what_scikit_learn_says(classes: int, dim: int) -> None:
    """Two classes, and more features than labels, have ways of their own to the same optimum."""
    generator = torch.Generator().manual_seed(0)
    y, truth = torch.arange(40) % classes, torch.arange(400) % classes
    x, test = (
        torch.eye(classes, dim)[labels] + 0.8 * torch.randn(len(labels), dim, generator=generator)
        for labels in (y, truth)
    )
    std, mean = x.std(0, correction=0), x.mean(0)
    theirs = LogisticRegression(C=0.05, tol=1e-8, max_iter=10_000).fit((x - mean) / std, y)
    expected = float(theirs.score((test - mean) / std, truth))
    score = fewshot_probe(x, y, test, truth, shots=40 // classes, seeds=(0,), c=0.05)
    assert score.mean == pytest.approx(expected, abs=0.006)
    assert 1 / classes + 0.05 < expected < 0.97


def test_classes_may_have_gaps() -> None:
    (x, y), (test, truth) = draw(40, 0), draw(100, 1)
    names = torch.tensor([3, 7, 8, 11])
    assert fewshot_probe(x, names[y], test, names[truth]) == fewshot_probe(x, y, test, truth)


def test_penalty_has_an_influence() -> None:
    # few labels of many noisy features: the strength of the penalty shows
    data = (*draw(40, 0, noise=2.5), *draw(400, 1, noise=2.5))
    assert fewshot_probe(*data, c=1e-3).per_seed != fewshot_probe(*data, c=1e3).per_seed


def test_score_sums_up_its_seeds() -> None:
    data = (*draw(200, 0), *draw(100, 1))
    score = fewshot_probe(*data, shots=3, seeds=(0, 1, 2))
    single = [fewshot_probe(*data, shots=3, seeds=(seed,)).mean for seed in (0, 1, 2)]
    assert score.per_seed == tuple(single)
    assert len(set(single)) > 1
    assert score.mean == pytest.approx(statistics.fmean(single))
    assert score.std == pytest.approx(statistics.pstdev(single))


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    fewshot_probe(*draw(40, 0), *draw(8, 1), shots=2, seeds=(0,))
    assert torch.equal(torch.get_rng_state(), before)


def test_class_with_too_few_labels_is_named() -> None:
    (x, y), (test_x, test_y) = draw(40, 0), draw(8, 1)
    with pytest.raises(ValueError, match="shots=11 must not exceed the labels of a class, but class 0 has 10"):
        fewshot_probe(x, y, test_x, test_y, shots=11)
    kept = y != 3
    with pytest.raises(ValueError, match="shots=10 must not exceed the labels of a class, but class 3 has 0"):
        fewshot_probe(x[kept], y[kept], test_x, test_y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 0}, "shots=0 must be at least 1"),
        ({"seeds": ()}, r"seeds=\(\) must be at least one"),
        ({"c": 0.0}, "c=0.0 must be above 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fewshot_probe(*draw(40, 0), *draw(8, 1), **arguments)


def test_one_broken_feature_is_an_error() -> None:
    (x, y), (test_x, test_y) = draw(40, 0), draw(8, 1)
    x[7, 1] = float("inf")
    with pytest.raises(ValueError, match="train features must be finite, but 1 of 40 rows hold NaN or infinity"):
        fewshot_probe(x, y, test_x, test_y)


def test_wrong_shapes() -> None:
    (x, y), (test_x, test_y) = draw(40, 0), draw(8, 1)
    with pytest.raises((ValueError, TypeError), match="test_labels"):
        fewshot_probe(x, y, test_x, test_y[1:])
    with pytest.raises((ValueError, TypeError), match="test"):
        fewshot_probe(x, y, test_x[:, 1:], test_y)
    with pytest.raises(ValueError, match="labels must name at least two classes, but all are 0"):
        fewshot_probe(x, 0 * y, test_x, 0 * test_y)
