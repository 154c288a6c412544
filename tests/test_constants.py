"""Tables of numbers are made once for each device, and by nothing that leaves one unusable."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ssl_blocks import constants
from ssl_blocks.constants import constant

X = torch.zeros(1)


@pytest.fixture(autouse=True)
def nothing_made(monkeypatch):
    monkeypatch.setattr(constants, "_MADE", {})


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16, torch.int64])
def test_it_holds_the_numbers(dtype):
    found = constant((1, 2, 4), like=X, dtype=dtype)
    assert found.tolist() == [1, 2, 4]
    assert found.dtype == (dtype or torch.float32)


def test_it_is_made_once_for_each_device_type_and_numbers():
    found = constant((0.1, 0.2), like=X)
    assert constant([0.1, 0.2], like=torch.ones(2, 2, dtype=torch.uint8)) is found
    assert constant((0.1, 0.3), like=X) is not found
    assert constant((0.1, 0.2), like=X, dtype=torch.float64).dtype == torch.float64
    assert constant((0.1, 0.2), like=X.to("meta")).is_meta


def test_what_inference_asks_for_first_serves_a_backward_pass():
    with torch.inference_mode():
        constant((2.0, 3.0), like=torch.zeros(1))
    weight = torch.ones(2, requires_grad=True)
    (weight * constant((2.0, 3.0), like=weight.detach())).sum().backward()
    assert weight.grad.tolist() == [2.0, 3.0]


def test_fake_tensors_get_fake_ones_and_leave_none_behind():
    with FakeTensorMode():
        like = torch.zeros(1)
        assert type(constant((1.0, 2.0), like=like) + like) is FakeTensor
    assert not constants._MADE
    constant((1.0, 2.0), like=X)
    with FakeTensorMode():
        like = torch.zeros(1)
        assert type(constant((1.0, 2.0), like=like) + like) is FakeTensor


@pytest.mark.parametrize("dtype", [None, torch.int64])
def test_what_is_traced_or_captured_holds_tables_of_its_own(monkeypatch, dtype):
    kept = constant((2, 3), like=X, dtype=dtype)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = constant((2, 3), like=X, dtype=dtype)
    assert found is not kept
    assert torch.equal(found, kept)
    assert found.dtype == kept.dtype
    assert len(constants._MADE) == 1
