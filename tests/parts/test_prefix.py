"""PrefixCausalMask and FullMask equal their slow twins, and nothing leaks under them."""

import pytest
import torch
from hypothesis import given, strategies as st

import ssl_blocks as sb
from ssl_blocks.testing import LeakError, assert_no_leak
from tests.recipes import build, images
from tests.reference import dense_steps, full_masks, prefix_masks


def serialization(steps, step_sizes=None):
    step = torch.tensor(steps)
    return sb.Serialization(order=torch.arange(step.shape[1]).expand_as(step), step=step, step_sizes=step_sizes)


def rows(mask, image):
    return mask[image % len(mask), 0].tolist()


@given(dense_steps(), st.integers(1, 4), st.integers(0, 2))
def test_a_prefix_mask_equals_its_twin(steps, num_steps, num_prefix):
    whole = slice(0, len(steps[0]))
    masks = sb.PrefixCausalMask(num_steps=num_steps)(serialization(steps), whole, whole, num_prefix)
    assert masks.feedback is None
    for image, step in enumerate(steps):
        source, target, memory = prefix_masks(step, step, num_steps=num_steps, num_prefix=num_prefix)
        assert rows(masks.source, image) == source
        assert rows(masks.target, image) == target
        assert rows(masks.memory, image) == memory


@given(dense_steps(), st.booleans(), st.integers(0, 2))
def test_a_full_mask_equals_its_twin(steps, feedback, num_prefix):
    whole = slice(0, len(steps[0]))
    masks = sb.FullMask(feedback=feedback)(serialization(steps), whole, whole, num_prefix)
    for image, step in enumerate(steps):
        source, target, memory, back = full_masks(step, step, num_prefix=num_prefix)
        assert rows(masks.source, image) == source
        assert rows(masks.target, image) == target
        assert rows(masks.memory, image) == memory
        assert (masks.feedback is not None) == feedback
        if feedback:
            assert rows(masks.feedback, image) == back


def test_two_steps_of_fixed_size_need_no_mask_in_the_encoder():
    draw = serialization([[0, 1, 1]], step_sizes=(1, 2))
    masks = sb.FullMask(feedback=True)(draw, slice(0, 1), slice(1, 3), 1)
    assert masks.source is None
    assert masks.feedback.all()
    assert masks.feedback.shape == (1, 1, 2, 2)


def test_the_first_step_alone_is_the_causal_mask():
    draw = serialization([[0, 0, 1, 2, 2]], step_sizes=(2, 1, 2))
    ours, theirs = (
        mask(draw, *draw.windows(), 1) for mask in (sb.PrefixCausalMask(num_steps=1), sb.SegmentCausalMask())
    )
    for name in ("source", "target", "memory"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_what_makes_no_sense_is_refused():
    draw = serialization([[0, 0, 1]], step_sizes=(2, 1))
    with pytest.raises(ValueError, match="num_steps=0 must be at least 1"):
        sb.PrefixCausalMask(num_steps=0)
    with pytest.raises(ValueError, match="num_steps=2 must leave something to predict of the 2 steps"):
        sb.PrefixCausalMask(num_steps=2)(draw, *draw.windows(), 0)
    for mask in (sb.PrefixCausalMask(num_steps=1), sb.FullMask()):
        with pytest.raises(ValueError, match="predict_first=True does not go with"):
            mask(draw, *draw.windows(True), 1, predict_first=True)


# In an objective


def objective(mask, partitioner=None, **options):
    partitioner = sb.SquarePartitioner(sides=(2,)) if partitioner is None else partitioner
    return build(partitioner, image_size=8, depth=2, mask=mask, **options)


@pytest.mark.parametrize(
    ("partitioner", "class_token"), [(sb.SquarePartitioner(sides=(2,)), True), (sb.BlobPartitioner(counts=(6,)), False)]
)
def test_nothing_leaks_under_a_prefix(partitioner, class_token):
    model = objective(sb.PrefixCausalMask(num_steps=2), partitioner, class_token=class_token)
    assert_no_leak(model, images(2, 8), generator=torch.Generator().manual_seed(0), draws=2)


def test_a_prefix_that_is_predicted_is_found():
    class Later(sb.SegmentCausalMask):
        num_given = 1

        def __call__(self, *arguments):
            masks = sb.PrefixCausalMask(num_steps=2)(*arguments)
            return sb.AttentionMasks(masks.source, masks.target, masks.memory | (masks.memory.any(-2, keepdim=True)))

    with pytest.raises(LeakError):
        assert_no_leak(objective(Later()), images(2, 8), generator=torch.Generator().manual_seed(0))


def test_tokens_of_the_prefix_are_no_targets_and_see_each_other():
    model = objective(sb.PrefixCausalMask(num_steps=2))
    batch = images(2, 8)
    draw = model.draw(batch, generator=torch.Generator().manual_seed(0))
    out = model(batch, draw)
    assert torch.equal(out.is_target, out.step >= 2)
    masks = model.mask(draw, *draw.windows(), 0)
    assert masks.source[0, 0, :8, :8].all()  # two squares of four tokens
    assert not masks.source[0, 0, :8, 8:].any()
