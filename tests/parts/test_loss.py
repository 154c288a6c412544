import pytest
import torch
from hypothesis import given, strategies as st

from ssl_blocks import predicted_cross_entropy, predicted_mse
from tests.reference import cross_entropy, mean_squared_error


@given(st.data(), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_loss_equals_mean_by_loop(data, batch, rows, values):
    is_target = torch.tensor([[data.draw(st.booleans()) for _ in range(rows)] for _ in range(batch)])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    predictions, targets = torch.randn(2, batch, rows, values, generator=generator, dtype=torch.float64)
    loss = predicted_mse(predictions, targets, is_target)
    assert loss.item() == pytest.approx(mean_squared_error(predictions, targets, is_target))
    assert loss.dtype == torch.float64


def test_images_with_more_predicted_tokens_weigh_more():
    predictions = torch.tensor([[[1.0], [1.0], [1.0]], [[3.0], [3.0], [3.0]]])
    is_target = torch.tensor([[True, True, True], [True, False, False]])
    assert predicted_mse(predictions, torch.zeros(2, 3, 1), is_target).item() == pytest.approx((3 * 1 + 9) / 4)


def test_a_batch_without_any_target_has_loss_zero_and_gradients_of_zero():
    predictions = torch.randn(2, 3, 4, requires_grad=True)
    loss = predicted_mse(predictions, torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(predictions.grad, torch.zeros(2, 3, 4))


def test_no_rows_at_all_are_loss_zero():
    assert predicted_mse(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), 1e30])
def test_rows_that_do_not_count_may_hold_anything(rubbish):
    predictions = torch.tensor([[[2.0], [rubbish]]], requires_grad=True)
    targets = torch.tensor([[[0.0], [-rubbish]]])
    loss = predicted_mse(predictions, targets, torch.tensor([[True, False]]))
    loss.backward()
    assert loss.item() == 4
    assert predictions.grad.tolist() == [[[4.0], [0.0]]]


def test_sixteen_bit_predictions_are_summed_in_single_precision():
    predictions = torch.full((1, 5000, 1), 1.0078125, dtype=torch.bfloat16, requires_grad=True)
    loss = predicted_mse(predictions, torch.zeros(1, 5000, 1), torch.ones(1, 5000, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1.0078125**2)
    loss.backward()
    assert predictions.grad.dtype == torch.bfloat16


@given(st.data(), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6))
def test_cross_entropy_equals_mean_by_loop(data, batch, rows, classes):
    is_target = torch.tensor([[data.draw(st.booleans()) for _ in range(rows)] for _ in range(batch)])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    predictions, wanted = torch.randn(2, batch, rows, classes, generator=generator, dtype=torch.float64)
    targets = wanted.softmax(-1) if data.draw(st.booleans()) else torch.eye(classes).double()[wanted.argmax(-1)]
    loss = predicted_cross_entropy(predictions, targets, is_target)
    assert loss.item() == pytest.approx(cross_entropy(predictions, targets, is_target))


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), 1e30])
def test_cross_entropy_passes_over_rows_that_do_not_count(rubbish):
    predictions = torch.tensor([[[2.0, 0.0], [rubbish, 0.0]]], requires_grad=True)
    loss = predicted_cross_entropy(predictions, torch.eye(2)[None], torch.tensor([[True, False]]))
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(-2.0).exp().log1p().item())
    assert torch.equal(predictions.grad[0, 1], torch.zeros(2))


def test_cross_entropy_of_nothing_is_zero_with_gradients_of_zero():
    predictions = torch.randn(2, 3, 4, requires_grad=True)
    loss = predicted_cross_entropy(predictions, torch.eye(4)[:3].expand(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(predictions.grad, torch.zeros(2, 3, 4))
