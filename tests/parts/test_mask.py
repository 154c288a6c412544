import dataclasses

import pytest
import torch
from hypothesis import given, strategies as st

from ssl_blocks import BlobPartitioner, Grid, RandomSerializer, SegmentCausalMask, Serialization
from ssl_blocks.parts import MaskBuilder
from tests.recipes import blank
from tests.reference import causal_masks, dense_steps


def serialization(step: list[list[int]], step_sizes: tuple[int, ...] | None = None) -> Serialization:
    order = torch.arange(len(step[0])).expand(len(step), -1)
    return Serialization(order=order, step=torch.tensor(step), step_sizes=step_sizes)


def as_lists(masks) -> tuple[list, list, list]:
    return tuple(mask[:, 0].tolist() for mask in (masks.source, masks.target, masks.memory))


def steps_of_sizes(sizes: tuple[int, ...]) -> list[int]:
    return [k for k, size in enumerate(sizes) for _ in range(size)]


step_sizes = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)


def test_a_segment_causal_mask_fills_the_role():
    assert isinstance(SegmentCausalMask(), MaskBuilder)


@given(dense_steps(), st.integers(0, 2), st.booleans())
def test_full_length_masks_equal_those_by_loop(steps, num_prefix, predict_first):
    s = serialization(steps)
    masks = SegmentCausalMask()(s, *s.windows(predict_first), num_prefix, predict_first)
    expected = [causal_masks(x, x, num_prefix=num_prefix, predict_first=predict_first) for x in steps]
    assert as_lists(masks) == tuple(map(list, zip(*expected, strict=True)))
    assert masks.source.dtype == masks.target.dtype == masks.memory.dtype == torch.bool


@given(step_sizes, st.integers(1, 3), st.integers(0, 2), st.booleans())
def test_sliced_masks_equal_those_by_loop_and_are_shared_by_all_images(sizes, batch, num_prefix, predict_first):
    steps = steps_of_sizes(sizes)
    s = serialization([steps] * batch, sizes)
    encoded, predicted = s.windows(predict_first)
    masks = SegmentCausalMask()(s, encoded, predicted, num_prefix, predict_first)
    expected = causal_masks(steps[encoded], steps[predicted], num_prefix=num_prefix, predict_first=predict_first)
    assert as_lists(masks) == tuple([mask] for mask in expected)


@given(step_sizes, st.integers(0, 2), st.booleans())
def test_sliced_masks_are_blocks_of_the_full_length_masks(sizes, num_prefix, predict_first):
    s = serialization([steps_of_sizes(sizes)], sizes)
    encoded, predicted = s.windows(predict_first)
    sliced = SegmentCausalMask()(s, encoded, predicted, num_prefix, predict_first)
    whole = slice(0, s.num_tokens)
    keys = slice(0, num_prefix + encoded.stop)
    rest = slice(num_prefix + encoded.stop, None)
    for reading in (dataclasses.replace(s, step_sizes=None), s):  # windows may also be widened by hand
        full = SegmentCausalMask()(reading, whole, whole, num_prefix, predict_first)
        assert torch.equal(full.source[:, :, keys, keys], sliced.source)
        assert torch.equal(full.target[:, :, predicted, predicted], sliced.target)
        assert torch.equal(full.memory[:, :, predicted, keys], sliced.memory)
        # what slicing leaves out is seen by no one
        assert not full.source[:, :, keys, rest].any()
        assert not full.memory[:, :, predicted, rest].any()
        assert not full.target[:, :, predicted, : predicted.start].any()


@given(dense_steps(), st.integers(0, 2), st.booleans())
def test_an_image_alone_has_the_masks_it_has_in_its_batch(steps, num_prefix, predict_first):
    s = serialization(steps)
    together = SegmentCausalMask()(s, *s.windows(predict_first), num_prefix, predict_first)
    for b, step in enumerate(steps):
        one = serialization([step])
        alone = SegmentCausalMask()(one, *one.windows(predict_first), num_prefix, predict_first)
        for field in ("source", "target", "memory"):
            assert torch.equal(getattr(together, field)[b : b + 1], getattr(alone, field))


@given(dense_steps(), st.integers(1, 3))
def test_prefix_tokens_see_only_each_other_and_are_seen_by_all(steps, num_prefix):
    s = serialization(steps)
    masks = SegmentCausalMask()(s, *s.windows(), num_prefix)
    assert masks.source[:, 0, :, :num_prefix].all()
    assert masks.memory[:, 0, :, :num_prefix].all()
    assert not masks.source[:, 0, :num_prefix, num_prefix:].any()


@given(dense_steps())
def test_queries_of_the_unpredicted_first_step_are_isolated(steps):
    s = serialization(steps)
    masks = SegmentCausalMask()(s, *s.windows(), 0)
    first = s.step == 0
    for b in range(len(steps)):
        others = masks.target[b, 0] & ~torch.eye(s.num_tokens, dtype=torch.bool)
        assert not others[:, first[b]].any()
        assert not others[first[b]].any()
        assert not masks.memory[b, 0, first[b]].any()
        assert masks.memory[b, 0, ~first[b]].any(-1).all()


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("size", [1, 4])
def test_for_equal_segments_all_three_sliced_masks_are_one_block_triangle(count, size):
    sizes = (size,) * count
    s = serialization([steps_of_sizes(sizes)], sizes)
    masks = SegmentCausalMask()(s, *s.windows(), 0)
    blocks = torch.ones(count - 1, count - 1).tril().bool()
    triangle = blocks.repeat_interleave(size, 0).repeat_interleave(size, 1)[None, None]
    for mask in (masks.source, masks.target, masks.memory):
        assert torch.equal(mask, triangle)


def test_masks_of_drawn_blobs_differ_between_images(generator):
    segments = BlobPartitioner(counts=(7, 3))(blank(3), Grid(4, 6), generator=generator)
    s = RandomSerializer()(segments, generator=generator)
    masks = SegmentCausalMask()(s, *s.windows(), 1)
    assert masks.source.shape == (3, 1, 25, 25)
    assert masks.memory.shape == (3, 1, 24, 25)
    expected = [causal_masks(x, x, num_prefix=1) for x in s.step.tolist()]
    assert as_lists(masks) == tuple(map(list, zip(*expected, strict=True)))
    assert not torch.equal(masks.source[0], masks.source[1])


def test_one_single_segment_leaves_empty_masks():
    s = serialization([[0, 0, 0]], (3,))
    masks = SegmentCausalMask()(s, *s.windows(), 1)
    assert (masks.source.shape, masks.target.shape, masks.memory.shape) == ((1, 1, 1, 1), (1, 1, 0, 0), (1, 1, 0, 1))
