"""What features look like without labels: closed forms, slow twins, and what is refused."""

import math
from functools import partial

import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from ssl_blocks.evaluation import (
    alignment,
    alpha_req,
    effective_rank,
    feature_quality,
    quality,
    rankme,
    ridge_probe,
    spread,
    uniformity,
)
from tests import reference


def some_features(num: int = 30, wide: int = 9, seed: int = 0) -> torch.Tensor:
    """Off centre, and of different deviations."""
    noise = torch.randn(num, wide, generator=torch.Generator().manual_seed(seed))
    return noise * torch.arange(1, wide + 1) ** -0.8 + 0.3


@pytest.mark.parametrize("shape", [(30, 9), (7, 12)])
def test_ranks_equal_their_twins(shape: tuple[int, int]) -> None:
    x = some_features(*shape)
    singular = torch.linalg.svdvals(x.double()).tolist()
    assert rankme(x) == pytest.approx(reference.entropy_rank(singular, 1e-7), rel=1e-9)
    assert rankme(x, epsilon=0.1) == pytest.approx(reference.entropy_rank(singular, 0.1), rel=1e-9)
    variances = torch.linalg.eigvalsh(reference.covariance(x)).clamp(min=0).tolist()
    assert effective_rank(x) == pytest.approx(reference.entropy_rank(variances), rel=1e-6)
    assert rankme(x) != pytest.approx(effective_rank(x), rel=0.1)


@pytest.mark.parametrize("limits", [(1, 9), (4, 50), (2, 6)])
def test_the_exponent_equals_its_twin(limits: tuple[int, int]) -> None:
    x = some_features()
    variances = torch.linalg.eigvalsh(reference.covariance(x)).flip(0).tolist()
    found = alpha_req(x, first=limits[0], last=limits[1])
    assert found == pytest.approx(reference.power_law(variances, *limits), rel=1e-6)


def test_uniformity_and_alignment_equal_their_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "CHUNK", 8)
    x, y = some_features(), some_features(seed=1)
    assert uniformity(x) == pytest.approx(reference.pair_potential(x, 2.0), rel=1e-9)
    assert uniformity(x, t=0.5) == pytest.approx(reference.pair_potential(x, 0.5), rel=1e-9)
    assert alignment(x, y) == pytest.approx(reference.pair_distance(x, y, 2.0), rel=1e-9)
    assert alignment(x, y, alpha=1.0) == pytest.approx(reference.pair_distance(x, y, 1.0), rel=1e-9)


def around(deviations: torch.Tensor, mean: float = 0.0) -> torch.Tensor:
    """Features of exactly these deviations along their axes."""
    return torch.cat([deviations.diag(), -deviations.diag()]) + mean


def test_closed_forms() -> None:
    axes = torch.ones(6)
    assert rankme(around(axes)) == pytest.approx(6, rel=1e-4)
    assert effective_rank(around(axes, mean=50.0)) == pytest.approx(6, rel=1e-4)
    assert rankme(around(axes, mean=50.0)) == pytest.approx(1, abs=0.2)  # the mean outweighs all
    for alpha in (0.5, 1.0, 2.0):
        assert alpha_req(around(torch.arange(1, 61.0) ** (-alpha / 2))) == pytest.approx(alpha, rel=1e-3)
    opposite = torch.tensor([[2.0, 0.0], [-0.1, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8)
    assert alignment(opposite, -opposite) == pytest.approx(4)
    assert spread(opposite) == pytest.approx(1)
    assert spread(torch.eye(4)) == pytest.approx(math.sqrt(3) / 2)
    assert uniformity(torch.eye(4)) == pytest.approx(-4)  # every pair at squared distance 2


def test_lengths_do_not_matter_where_directions_are_compared() -> None:
    x, y, long = some_features(), some_features(seed=1), torch.arange(1.0, 31)[:, None]
    assert uniformity(x * long) == pytest.approx(uniformity(x))
    assert alignment(x * long, y) == pytest.approx(alignment(x, y))
    assert spread(x * long) == pytest.approx(spread(x))


@pytest.mark.parametrize("constant", [torch.zeros(5, 3), torch.full((5, 3), 0.7)])
def test_constant_features_are_measured(constant: torch.Tensor) -> None:
    found = feature_quality(constant, (constant, constant))
    assert found.rankme == pytest.approx(float(constant.any()), abs=1e-4)
    assert (found.effective_rank, found.alpha_req) == (0, math.inf)
    assert (found.uniformity, found.spread, found.alignment) == pytest.approx((0, 0, 0), abs=1e-9)
    assert found.as_dict()["alpha_req"] is None
    assert "spread" in found.collapse()


def test_features_of_few_directions_have_a_slope_from_where_there_is_one() -> None:
    variances = torch.tensor([1.0, 0.5, 0.25])
    found = alpha_req(around(torch.cat([variances.sqrt(), torch.zeros(5)])))
    assert found == pytest.approx(reference.power_law(variances.tolist(), 2, 3), rel=1e-5)


def test_collapse_is_told_by_what_says_so() -> None:
    healthy = some_features(64, 16)
    assert feature_quality(healthy).collapse() is None
    alike = 1e-3 * healthy + torch.ones(16)
    assert feature_quality(alike).spread < 0.01
    assert feature_quality(alike).collapse().startswith("features have collapsed: their spread is 0.0")
    line = torch.randn(64, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(16) + 0.01 * healthy
    assert feature_quality(line).spread > 0.5
    assert feature_quality(line).collapse().startswith("features have collapsed: their effective rank is 1.0")


def test_all_of_it_is_what_each_says() -> None:
    x, y, z = (some_features(seed=seed) for seed in range(3))
    found = feature_quality(x, (y, z))
    assert found.rankme == rankme(x)
    assert found.effective_rank == effective_rank(x)
    assert found.alpha_req == alpha_req(x)
    assert found.uniformity == uniformity(x)
    assert found.alignment == alignment(y, z)
    assert found.spread == spread(x)
    assert found.num_images == 30
    assert feature_quality(x).alignment is None
    assert feature_quality(x).as_dict()["alignment"] is None


MEASURES = [rankme, effective_rank, alpha_req, uniformity, spread, lambda x: alignment(x, x)]


@pytest.mark.parametrize("measure", MEASURES)
def test_what_cannot_be_measured_is_refused(measure) -> None:
    x = some_features()
    x[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"must be finite, but 1 of 30 rows hold NaN or infinity, first row 3"):
        measure(x)
    with pytest.raises(ValueError, match=r"of shape \(1, 9\) must be \[N, D\] with at least two rows"):
        measure(some_features()[:1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(rankme, epsilon=-1.0), r"epsilon=-1.0 must be at least 0"),
        (partial(alpha_req, first=0), r"first=0 must be at least 1"),
        (partial(alpha_req, first=5, last=5), r"first=5 and last=5 must be"),
        (partial(uniformity, t=0.0), r"t=0.0 must be above 0"),
        (lambda x: alignment(x, x, alpha=0.0), r"alpha=0.0 must be above 0"),
        (lambda x: alignment(x, x[:5]), r"second of shape \(5, 9\) must be of shape \[N, D\], N = 30 as in first"),
    ],
)
def test_numbers_out_of_range_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(some_features())


def classes(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(num) % 3
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(num, 6, generator=torch.Generator().manual_seed(seed))
    return (centres[labels] + 1.2 * noise) * torch.tensor([100.0, 1, 1, 1, 0.01, 1]) + 5, labels


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_the_probe_in_closed_form_is_scikit_learns(penalty: float) -> None:
    (train, labels), (test, truth) = classes(60, 0), classes(200, 1)
    mean, std = train.double().mean(0), train.double().std(0, correction=0)
    rows, unseen = ((x.double() - mean) / std for x in (train, test))
    twin = RidgeClassifier(alpha=penalty * len(train)).fit(rows.numpy(), labels.numpy())
    expected = twin.score(unseen.numpy(), truth.numpy())
    assert 0.5 < expected < 0.95
    assert ridge_probe(train, labels, test, truth, penalty=penalty) == pytest.approx(expected)


def test_the_probe_knows_constant_features_and_refuses_what_is_none() -> None:
    (train, labels), (test, truth) = classes(60, 0), classes(200, 1)
    wide = [torch.cat([x, torch.ones(len(x), 1)], 1) for x in (train, test)]
    assert ridge_probe(wide[0], labels, wide[1], truth) == ridge_probe(train, labels, test, truth)
    with pytest.raises(ValueError, match=r"penalty=0.0 must be above 0"):
        ridge_probe(train, labels, test, truth, penalty=0.0)
    with pytest.raises(ValueError, match=r"test_labels must be classes 0..2"):
        ridge_probe(train, labels, test, truth + 1)
