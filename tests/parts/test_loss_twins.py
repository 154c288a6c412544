"""Losses equal their slow twins."""

from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st

import ssl_blocks as sb
from tests.reference import mean_cosine, mean_of_values

BETA = 0.7


def smooth(p: float, t: float) -> float:
    error = abs(p - t)
    return 0.5 * error**2 / BETA if error < BETA else error - BETA / 2


LOSSES = {
    "l1": (sb.predicted_l1, partial(mean_of_values, error=lambda p, t: abs(p - t))),
    "smooth l1": (partial(sb.predicted_smooth_l1, beta=BETA), partial(mean_of_values, error=smooth)),
    "cosine": (sb.predicted_cosine, mean_cosine),
    "mse": (sb.predicted_mse, partial(mean_of_values, error=lambda p, t: (p - t) ** 2)),
}


@pytest.mark.parametrize("name", LOSSES)
@given(st.data(), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_a_loss_equals_its_twin(name, data, batch, rows, values):
    loss, twin = LOSSES[name]
    is_target = torch.tensor([[data.draw(st.booleans()) for _ in range(rows)] for _ in range(batch)])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    predictions, targets = torch.randn(2, batch, rows, values, generator=generator, dtype=torch.float64)
    found = loss(predictions, targets, is_target)
    assert found.item() == pytest.approx(twin(predictions, targets, is_target))
    assert found.dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
def test_sixteen_bit_is_summed_in_single_precision(name):
    loss, twin = LOSSES[name]
    predictions, targets = torch.randn(2, 1, 500, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    is_target = torch.ones(1, 500, dtype=torch.bool)
    found = loss(predictions, targets, is_target)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(twin(predictions.double(), targets.double(), is_target), rel=1e-4)


def test_the_parts_of_a_smooth_error_meet():
    count = torch.tensor([[True]])
    below, above = (
        sb.predicted_smooth_l1(torch.full((1, 1, 1), BETA + step), torch.zeros(1, 1, 1), count, beta=BETA)
        for step in (-1e-4, 1e-4)
    )
    assert below.item() == pytest.approx(BETA / 2, abs=2e-4)
    assert above.item() == pytest.approx(BETA / 2, abs=2e-4)
