"""Parts that do not fit each other: one clear error each."""

import pytest
import torch

import ssl_blocks as sb
from tests.recipes import build, images

SQUARES = sb.SquarePartitioner(sides=(2,))


class Short(sb.PixelTarget):
    """A target for another grid."""

    def __call__(self, images):
        return super().__call__(images)[:, :40]


class Narrow(sb.PixelTarget):
    """A target of one value, which a subtraction would spread over all that is predicted."""

    def __call__(self, images):
        return super().__call__(images)[..., :1]


@pytest.mark.parametrize(("target", "shape"), [(Short, (2, 40, 12)), (Narrow, (2, 64, 1))])
def test_a_target_of_another_length_than_the_grid_or_the_head_is_refused(target, shape):
    objective = build(SQUARES, depth=1, decoder_depth=1)
    objective.target = target(objective.tokenizer)
    shown = ", ".join(map(str, shape))
    message = rf"target {target.__name__} must give \[B, N, P\] with 64 positions of 12 values, .* shape \({shown}\)"
    with pytest.raises(ValueError, match=message):
        objective(images(2))


def test_a_loss_that_is_no_scalar_is_refused():
    objective = build(SQUARES, depth=1, decoder_depth=1)
    objective.loss = lambda predictions, targets, is_target: (predictions - targets).square().mean(-1)
    with pytest.raises(ValueError, match=r"loss must return a scalar, .* got shape \(2, 60\)"):
        objective(images(2))


def test_feedback_without_queries_is_refused():
    base = build(SQUARES, depth=1, decoder_depth=1)
    objective = build(
        sb.SubsetPartitioner(hidden=0.5), depth=1, decoder_depth=1, mask=sb.FullMask(feedback=True),
        serializer=sb.OrderedSerializer(),
    )  # fmt: skip
    assert base.reader.dim == objective.reader.dim
    with pytest.raises(ValueError, match="lets content see queries, which only QueryReader puts beside it"):
        objective(images(2))


def test_blocks_that_overlap_are_refused_where_an_order_is_asked_for():
    def blocks(segments, *, generator=None):
        order = torch.tensor([0, 1, 8, 9, 9, 10, 17, 18]).repeat(8).expand(2, -1)
        step = torch.arange(16).repeat_interleave(4).expand(2, -1)
        return sb.Serialization(order, step, (4,) * 16)

    objective = build(SQUARES, depth=1, decoder_depth=1, serializer=blocks)
    with pytest.raises(ValueError, match="each of the 64 positions once, but image 0 names 7 of them: blocks"):
        objective.draw(images(2))
