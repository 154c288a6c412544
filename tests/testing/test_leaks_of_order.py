"""The leak test on what a reading order alone shows: later places, rows that follow other queries, tokens left out."""

import dataclasses

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.testing import LeakError, assert_no_leak, check_leaks
from tests.recipes import build, images

SQUARES = sb.SquarePartitioner(sides=(2,))


def check(objective, draws=32):  # of pairs something is said where there are 16 draws at least
    return assert_no_leak(objective, images(2, 8), generator=torch.Generator().manual_seed(0), draws=draws)


def pairs(*, spoil=None):
    """Segments of two neighbours in a row, in random order."""

    class Dominoes:
        def __call__(self, images, grid, *, generator=None):
            ids = torch.arange(grid.num_tokens, device=images.device) // 2
            return sb.Segments((ids.expand(len(images), -1),), (grid.num_tokens // 2,), (2,) * (grid.num_tokens // 2))

    objective = build(Dominoes(), image_size=8, depth=2)
    return objective if spoil is None else spoiled(objective, spoil)


class Spoiled(nn.Module):
    """A reader whose queries somebody changes: ``spoil(query_index)``, or with the whole draw."""

    def __init__(self, inner, spoil):
        super().__init__()
        self.inner, self.dim, self.spoil = inner, inner.dim, spoil

    def forward(self, encoder, content, index, query_index, masks):
        return self.inner(encoder, content, index, self.spoil(query_index), masks)


def spoiled(objective, spoil):
    objective.reader = Spoiled(objective.reader, spoil)
    return objective


def rolled(size):
    """Queries rolled by one inside every segment of so many tokens."""
    return lambda index: index.reshape(len(index), -1, size).roll(1, 2).flatten(1)


def test_honest_orders_pass():
    assert check(pairs()).leaks == ()


@pytest.mark.parametrize("objective", [lambda spoil: spoiled(build(SQUARES, image_size=8, depth=2), spoil(4))])
def test_queries_that_are_rolled_inside_a_segment_are_found(objective):
    with pytest.raises(LeakError, match="when two tokens of a step exchange their slots: it does not follow the query"):
        check(objective(rolled))


def test_a_reader_that_knows_tokens_by_their_slots_says_so():
    objective = spoiled(build(SQUARES, image_size=8, depth=2), rolled(4))
    objective.reader.in_order = True
    hint = "the reader counts on the order of tokens, so whether rows follow their own queries was not looked at"
    assert hint in check(objective, draws=2).hints


def test_queries_that_are_exchanged_in_pairs_are_found():
    with pytest.raises(LeakError, match="with the place of the other token of their step than with their own"):
        check(pairs(spoil=rolled(2)))


class Foreseeing(sb.SegmentPrediction):
    """Adds where a later token lies to every prediction of a step."""

    at, ahead = 1, 2

    def forward(self, images, draw=None):
        out = super().forward(images, draw)
        steps = out.draw.step
        later = torch.where(steps == self.at + self.ahead, out.draw.order, 0).sum(1)[:, None, None]
        known = torch.where(out.step[..., None] == self.at, 1e-3 * later, 0.0).to(out.predictions.dtype)
        predictions = out.predictions + known
        loss = sb.predicted_mse(predictions, out.targets, out.is_target)
        return dataclasses.replace(out, predictions=predictions, loss=loss)


@pytest.mark.parametrize(("at", "ahead"), [(1, 1), (1, 5), (5, 2)])
def test_the_place_of_any_later_step_is_found(at, ahead):
    objective = pairs()
    objective.__class__ = Foreseeing
    objective.at, objective.ahead = at, ahead
    with pytest.raises(LeakError, match="it knows where later tokens lie"):
        check(objective)


def partial_prediction():
    """A quarter is given, a quarter predicted, and half is neither (CrossMAE)."""
    base = build(SQUARES, image_size=8, depth=2)
    return sb.SegmentPrediction(
        encoder=base.encoder,
        tokenizer=base.tokenizer,
        partitioner=sb.SubsetPartitioner(hidden=(0.25, 0.5)),
        serializer=sb.OrderedSerializer(),
        num_predicted=1,
        mask=sb.FullMask(),
        reader=base.reader,
        target=base.target,
    )


def test_a_prediction_of_some_steps_passes():
    check(partial_prediction(), draws=2)


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_pixels_that_are_neither_given_nor_predicted_are_found(size):

    class Peeping(sb.SegmentPrediction):
        def forward(self, images, draw=None):
            out = super().forward(images, draw)
            rest = out.draw.take(self.tokenizer(images)).flatten(2)[:, -1:].mean(-1, keepdim=True)
            predictions = out.predictions + size * rest
            loss = sb.predicted_mse(predictions, out.targets, out.is_target)
            return dataclasses.replace(out, predictions=predictions, loss=loss)

    objective = partial_prediction()
    objective.__class__ = Peeping
    with pytest.raises(LeakError, match=r"depends on position .* of tokens that are neither given nor predicted"):
        check(objective)


def test_blocks_of_ijepa_pass_in_any_draw():
    base = build(SQUARES, image_size=8, depth=2)
    objective = sb.objectives.BlockPrediction(
        encoder=base.encoder,
        tokenizer=base.tokenizer,
        sampler=sb.parts.RectangleSampler(count=3, size=(2, 2)),
        decoder=sb.MaskTokenDecoder(grid=base.encoder.grid, dim=16, depth=1, num_heads=2),
        target=sb.EncoderTarget(sb.MovingAverage(base.encoder, momentum=0.9), norm="token"),
    )
    assert check(objective, draws=16).leaks == ()


def test_all_that_is_found_is_reported():
    class Open:
        def __call__(self, *args):
            masks = sb.SegmentCausalMask()(*args)
            return dataclasses.replace(masks, memory=masks.memory | True)

    found = check_leaks(build(SQUARES, image_size=8, depth=2, mask=Open()), images(2, 8), draws=2)
    assert len(found.leaks) > 3
    assert found.passed == ()


def test_half_precision_is_looked_at_in_double():
    objective = build(SQUARES, image_size=8, depth=2).half()
    nn.init.zeros_(objective.head.weight)
    found = assert_no_leak(objective, images(2, 8).half(), draws=2)
    assert "weights that are zero (head.weight) were shaken" in found.hints[0]
    assert objective.head.weight.dtype == torch.float16
    assert not objective.head.weight.any()
