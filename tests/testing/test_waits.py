"""assert_no_wait finds every read of a device and every copy to it, and the checks of all roles ask it."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.testing import (
    RoleError,
    WaitError,
    assert_no_wait,
    check_loss,
    check_mask_builder,
    check_objective,
    check_partitioner,
    check_reader,
    check_serializer,
    check_target,
)
from ssl_blocks.testing.role_case import leaves
from tests.recipes import build, images

X, MASK, HOST = torch.randn(4, 4), torch.eye(4, dtype=torch.bool), torch.zeros(4)


def write(x, index, value):
    x[index] = value


WAITS = {
    "tensor": lambda x, m: torch.tensor([1.0, 2.0], device=x.device),
    "as_tensor": lambda x, m: torch.as_tensor([1.0, 2.0], device=x.device),
    "new_tensor": lambda x, m: x.new_tensor([1.0, 2.0]),
    "list as an index": lambda x, m: x[:, [1, 0]],
    "_to_copy": lambda x, m: x[:, np.array([1, 0])],
    "index.Tensor of a tensor on the CPU": lambda x, m: x[:, torch.arange(2)],
    "_to_copy.default of a tensor on the CPU": lambda x, m: HOST.to(x.device),
    "copy_.default of a tensor on the CPU": lambda x, m: x[0].copy_(HOST),
    "where.self of a tensor on the CPU": lambda x, m: torch.where(m, x, torch.tensor(0.0)),
    "a tensor of the host": lambda x, m: x + HOST,
    "through a mask": lambda x, m: write(x, m, torch.zeros(4, device=x.device)),
    "index_put.default through a mask": lambda x, m: torch.index_put(x, (m,), x.new_zeros(4)),
    "nonzero": lambda x, m: x[m],
    "item": lambda x, m: float(x[0, 0]),
    "item\\(\\) cannot": lambda x, m: 1 if (x > 0).any() else 0,
    "copy out": lambda x, m: x.tolist(),
    "numpy": lambda x, m: x.numpy(),
    "copy out of meta": lambda x, m: x.cpu(),
    "repeat_interleave": lambda x, m: x.repeat_interleave(m.sum(1), 0),
    "equal": lambda x, m: torch.equal(x, x),
    "unique": lambda x, m: x.unique(),
    "masked_select": lambda x, m: x.masked_select(m),
}
GOES_ON = {
    "a number through a mask": lambda x, m: write(x, m, 0.0),
    "a number": lambda x, m: x.mul_(0.5).add_(x, alpha=2.0),
    "a fill": lambda x, m: torch.full((2,), 1.0, device=x.device),
    "a tensor as it is": lambda x, m: torch.as_tensor(x, device=x.device),
    "an index": lambda x, m: x[x.argmax(1)],
    "a where": lambda x, m: torch.where(m, x, 0.0),
    "one hot": lambda x, m: nn.functional.one_hot(m.long(), 2),
    "a draw": lambda x, m: torch.rand(3, device=x.device),
    "work on the host": lambda x, m: x[: int(torch.tensor([1, 2])[-1])],
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_found_with_its_line(name):
    with pytest.raises(WaitError, match=rf"expected no wait for the device, got .*{name}.* in test_waits.py:\d+ \("):
        assert_no_wait(WAITS[name], X, MASK)


@pytest.mark.parametrize("name", GOES_ON)
def test_what_goes_on_is_not_held_up(name):
    assert_no_wait(GOES_ON[name], X, MASK)


def test_what_is_made_once_may_wait_once():
    made = []

    def step(x, again):
        if again or not made:
            made.append(torch.tensor([1.0], device=x.device))

    assert_no_wait(step, X, False)
    with pytest.raises(WaitError, match="tensor of Python's values"):
        assert_no_wait(step, X, True)


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("scale", scale) if isinstance(scale, nn.Buffer) else setattr(self, "scale", scale)

    def forward(self, x):
        return self.linear(x) * self.scale


def test_modules_are_moved_as_copies_and_what_does_not_move_along_is_found():
    own, module = X.clone(), Scaled(nn.Buffer(torch.ones(4)))
    assert_no_wait(lambda model, x: model(x).sum().backward(), module, own)
    assert not module.linear.weight.is_meta
    assert module.linear.weight.grad is None
    assert torch.equal(own, X)
    with pytest.raises(WaitError, match=r"a tensor of the host: .* \(forward\)"):
        assert_no_wait(lambda model, x: model(x), Scaled(torch.ones(4)), own)


class Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float(gradient.sum())


def test_a_backward_pass_is_watched_too():
    def step(x):
        Read.apply(x.detach().requires_grad_()).sum().backward()

    with pytest.raises(WaitError, match=r"item\(\) cannot be called .* \(backward\)"):
        assert_no_wait(step, X)


def test_other_errors_are_no_waits():
    with pytest.raises(RuntimeError, match="size mismatch"):
        assert_no_wait(lambda x: x @ torch.zeros(3, device=x.device), X)


# The checks of roles


class Tables:
    """Wraps a part, and makes a table of Python's numbers in every call."""

    def __init__(self, part):
        self.part, self.dim = part, getattr(part, "dim", None)

    def __call__(self, first, *args, **kwargs):
        device = next(x.device for _, x in leaves(first) if isinstance(x, torch.Tensor))
        torch.tensor([1.0, 2.0], device=device)
        return self.part(first, *args, **kwargs)


class Rows(nn.Module):
    """A reader that picks its rows by a list."""

    def __init__(self):
        super().__init__()
        self.base, self.dim = sb.QueryReader(16), 16

    def forward(self, *args):
        out = self.base(*args)
        return out[:, list(range(out.shape[1]))]


def looking(predictions, targets, is_target):
    return sb.predicted_mse(predictions, targets, is_target) if bool(is_target.any()) else 0 * predictions.sum()


def hurried(objective, hook):
    """An objective that logs a number of the device in one of its hooks."""
    part = nn.Module()
    part.register_buffer("seen", torch.zeros(()))
    kind = type("Hurried", (nn.Module,), {hook: lambda self, *_: float(self.seen)})
    part.__class__ = kind
    objective.part = part
    return objective


ENCODER = sb.encoders.timm_vit(image_size=8, patch_size=2, embed_dim=16, depth=1, num_heads=2)
SQUARES = sb.SquarePartitioner(sides=(2,))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_partitioner(Tables(SQUARES)), "partitioner Tables: .* tensor of Python's"),
        (lambda: check_serializer(Tables(sb.OrderedSerializer())), "serializer Tables: .* tensor of Python's"),
        (lambda: check_mask_builder(Tables(sb.SegmentCausalMask())), "mask builder Tables: .* tensor of Python's"),
        (lambda: check_reader(Rows(), ENCODER), "reader Rows: .* a list as an index"),
        (
            lambda: check_target(
                Tables(sb.PixelTarget(sb.PatchTokenizer(image_size=8, patch_size=2))), images(2, 8), sb.Grid(4, 4)
            ),
            "target Tables: .* tensor of Python's",
        ),
        (lambda: check_loss(looking), "loss looking: .* a read of its values"),
        (lambda: check_objective(hurried(build(SQUARES), "before_step"), images(2)), "objective .* a read of its"),
        (lambda: check_objective(hurried(build(SQUARES), "after_step"), images(2)), "objective .* a read of its"),
    ],
)
def test_parts_that_wait_are_found(check, message):
    with pytest.raises(RoleError, match=message):
        check()


def test_a_draw_that_may_look_is_left_out_and_the_rest_is_watched():
    class Looking(sb.SegmentPrediction):
        def draw(self, given, *, generator=None):
            found = super().draw(given, generator=generator)
            return dataclasses.replace(found) if float(given.sum()) else found

    objective = build(SQUARES)
    objective.__class__ = Looking
    assert "no waits" in check_objective(objective, images(2), looks=True).passed
    with pytest.raises(RoleError, match=r"objective .* a read of its"):
        check_objective(hurried(objective, "after_step"), images(2), looks=True)
