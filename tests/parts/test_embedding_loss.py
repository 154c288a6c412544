"""Losses of embeddings equal their twins, and have gradients that are right."""

import pytest
import torch

from ssl_blocks.parts import koleo, nt_xent, sigreg, vicreg
from tests.reference import contrast, epps_pulley, spread, variance_invariance_covariance


def embeddings(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrast(temperature):
    z = embeddings(5, 2, 7)
    assert nt_xent(z, temperature=temperature).item() == pytest.approx(contrast(z, temperature), rel=1e-5)


def test_contrast_of_three_views_is_the_mean_over_pairs():
    z = embeddings(4, 3, 5)
    unit = torch.nn.functional.normalize(z.flatten(0, 1), dim=-1)
    scores = (unit @ unit.T / 0.5).fill_diagonal_(float("-inf")).log_softmax(1)
    pairs = [(3 * i + v, 3 * i + w) for i in range(4) for v in range(3) for w in range(3) if v != w]
    expected = -sum(scores[a, b] for a, b in pairs) / len(pairs)
    torch.testing.assert_close(nt_xent(z), expected)


def test_vicreg():
    z = embeddings(6, 2, 4) * torch.tensor([0.3, 0.7, 1.5, 3.0])
    apart, lacking, others = variance_invariance_covariance(z)
    for weights, expected in (((1.0, 0.0, 0.0), apart), ((0.0, 1.0, 0.0), lacking), ((0.0, 0.0, 1.0), others)):
        names = dict(zip(("invariance", "variance", "covariance"), weights, strict=True))
        assert vicreg(z, **names).item() == pytest.approx(expected, rel=1e-4)
    assert vicreg(z).item() == pytest.approx(25 * apart + 25 * lacking + others, rel=1e-4)


def test_vicreg_takes_the_mean_over_pairs_of_views():
    z = embeddings(6, 3, 4)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(vicreg(z[:, list(pair)], variance=0.0, covariance=0.0) for pair in pairs) / 3
    torch.testing.assert_close(vicreg(z, variance=0.0, covariance=0.0), expected)


def test_koleo():
    z = embeddings(6, 4)
    assert koleo(z).item() == pytest.approx(spread(z), rel=1e-4)
    assert koleo(3 * z).item() == pytest.approx(koleo(z).item(), rel=1e-5)
    assert torch.isfinite(koleo(torch.ones(3, 4)))


def test_sigreg():
    z, directions = embeddings(8, 3), embeddings(3, 5, seed=1)
    unit = directions / directions.norm(dim=0)
    expected = [epps_pulley((z @ unit[:, k]).tolist(), 9, 3.0) for k in range(5)]
    assert sigreg(z, directions, knots=9, reach=3.0).item() == pytest.approx(sum(expected) / 5, rel=1e-4)


@pytest.mark.parametrize("loss", [lambda z: koleo(z[:, 0]), lambda z: sigreg(z[:, 0], torch.eye(4)), nt_xent, vicreg])
def test_descent_lowers_them(loss):
    z = (embeddings(8, 2, 4) * 0.1).requires_grad_()
    before = loss(z)
    (gradient,) = torch.autograd.grad(before, z)
    assert loss(z - 1e-3 * gradient / gradient.norm()) < before


@pytest.mark.parametrize("loss", [lambda z: koleo(z[:, 0]), lambda z: sigreg(z[:, 0], torch.eye(4)), nt_xent, vicreg])
def test_they_are_computed_in_single_precision_whatever_the_network_is_in(loss):
    near = 1 + 1e-3 * embeddings(6, 2, 4)  # 16 bits cannot tell which of these is next to which
    for z in (near, embeddings(6, 2, 4)):
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(z)
        assert torch.equal(found, loss(z))
    assert loss(z.bfloat16()).dtype == torch.float32
