"""Checks of partitioners, serializers and mask builders find what is wrong, and say so."""

import copy
import dataclasses
import random

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.randomness import check_generator
from ssl_blocks.testing import RoleError, check_mask_builder, check_partitioner, check_serializer

GRID = sb.Grid(4, 4)


def halves(ids, **options):
    """Two segments that follow ``ids`` [B, N]."""
    return sb.Segments(levels=(ids.long(),), counts=(2,), **options)


def unchecked(value, **changes):
    """A value with fields that its constructor may refuse."""
    value = copy.copy(value)
    for name, new in changes.items():
        object.__setattr__(value, name, new)
    return value


def rand(images, generator, **options):
    return torch.rand(len(images), 16, generator=generator, device=images.device, **options)


# Partitioners


def brightness(images, grid, *, generator=None):
    """Depends on the images, each by itself, and draws nothing."""
    cells = torch.nn.functional.adaptive_avg_pool2d(images.mean(1), (grid.height, grid.width)).flatten(1)
    return halves(cells > cells.median(1, keepdim=True).values)


def test_a_partitioner_that_looks_at_images_passes():
    assert check_partitioner(brightness, grid=GRID).passed == ("segments", "randomness", "images in a batch")


def looking(images, grid, *, generator=None):
    return halves(torch.tensor([[x.mean().item() > 0] * 8 + [True] * 8 for x in images]))


def by_the_last(images, grid, *, generator=None):
    check_generator(generator, images.device)
    share = 0.3 + 0.4 * images[-1:].mean((1, 2, 3)).sigmoid()[:, None]
    return halves(rand(images, generator) > share)


def test_random_segments_that_depend_on_another_image_are_found():
    with pytest.raises(RoleError, match="segments of an image that depend on no other, got others where another"):
        check_partitioner(by_the_last, grid=GRID)


def test_a_look_that_an_accelerator_waits_for_must_be_said():
    check_partitioner(looking, grid=GRID, looks=True)
    with pytest.raises(RoleError, match="partitioner looking: expected a draw without a look at data"):
        check_partitioner(looking, grid=GRID)


def of_batch(images, grid, *, generator=None):
    return halves(images.mean((1, 2, 3))[:, None].expand(-1, 16) > images.mean())


def outside(images, grid, *, generator=None):
    return halves(torch.arange(16).expand(len(images), -1) // 6)


def crossing(images, grid, *, generator=None):
    ids = torch.arange(16, device=images.device).expand(len(images), -1)
    return sb.Segments(levels=(ids // 4, ids % 3), counts=(4, 3))


def wrong_sizes(images, grid, *, generator=None):
    return halves(torch.arange(16, device=images.device).expand(len(images), -1) // 8, step_sizes=(7, 9))


def one_for_all(images, grid, *, generator=None):
    return halves(torch.zeros(1, 16, device=images.device))


def narrow(images, grid, *, generator=None):
    return sb.Segments(levels=(torch.zeros(len(images), 16, dtype=torch.int32),), counts=(2,))


def ignores_generator(images, grid, *, generator=None):
    return halves(rand(images, None) > 0.5)


def draws_elsewhere(images, grid, *, generator=None):
    return halves(torch.tensor([[random.random() > 0.5 for _ in range(16)] for _ in images]))


def any_generator(images, grid, *, generator=None):
    return halves(rand(images, generator) > 0.5)


def drawn_in_vain(images, grid, *, generator=None):
    check_generator(generator, images.device)
    return halves(rand(images, generator) > 2)


def shared(images, grid, *, generator=None):
    check_generator(generator, images.device)
    return halves(rand(images[:1], generator).expand(len(images), -1) > 0.5)


def on_cpu(images, grid, *, generator=None):
    return halves(torch.arange(16).expand(len(images), -1) // 8)


def without_generator(images, grid, *, generator=None):
    return halves((rand(images, None) if generator is None else torch.ones(len(images), 16)) > 0.5)


def painter(images, grid, *, generator=None):
    if images.device.type != "meta":
        images += 1
    return halves(torch.arange(16, device=images.device).expand(len(images), -1) // 8)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (of_batch, "expected an image alone to have the cut that it has in a batch, got another cut of image"),
        (outside, r"segments that hold together, got these: ids of level 0 must lie in \[0, 2\)"),
        (crossing, "levels must be nested"),
        (wrong_sizes, r"step_sizes=\(7, 9\) must be the sizes in every image"),
        (one_for_all, r"ids of a level \[B, N\] of shape \(3, 16\) and torch.int64, got \(1, 16\)"),
        (narrow, "torch.int64, got .* of torch.int32"),
        (ignores_generator, "default random state untouched"),
        (draws_elsewhere, "equal draws for generators of equal seeds"),
        (any_generator, "a generator of another device to be refused"),
        (drawn_in_vain, "other draws for other seeds, got the same for 8 seeds"),
        (shared, "a draw of its own for every image"),
        (on_cpu, "a draw on the images' device, meta, got levels.0 on cpu"),
        (without_generator, "randomness from the generator where one is given"),
        (painter, "images as they were, got changed ones"),
        (lambda images, grid, *, generator=None: torch.zeros(3, 16), "expected Segments, got Tensor"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_broken_partitioners_are_found(broken, message):
    with pytest.raises(RoleError, match=message):
        check_partitioner(broken, grid=GRID)


def test_one_image_is_not_enough():
    with pytest.raises(ValueError, match="images=1 of them must be at least 2"):
        check_partitioner(brightness, grid=GRID, images=torch.rand(1, 3, 8, 8))


# Serializers


def spoiled(change):
    """The ordered serializer, with its result changed."""

    def serializer(segments, *, generator=None):
        return change(sb.OrderedSerializer()(segments), segments, generator)

    return serializer


def torn(draw, segments, generator):
    """One step a token, however large the segments."""
    step = torch.arange(16, device=draw.order.device).expand_as(draw.step)
    return sb.Serialization(order=draw.order, step=step)


def foreign(draw, segments, generator):
    noise = torch.rand(draw.order.shape, generator=generator, device=draw.order.device)
    return sb.Serialization(order=draw.order.gather(1, (draw.step + noise).argsort(1)), step=draw.step)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, s, g: dataclasses.replace(d, order=d.order.clamp(max=14)), "order to hold every position once"),
        (lambda d, s, g: dataclasses.replace(d, step=d.step + 1), "steps from 0 that rise by 0 or 1"),
        (lambda d, s, g: dataclasses.replace(d, step=2 * d.step), "steps from 0 that rise by 0 or 1"),
        (lambda d, s, g: dataclasses.replace(d, step=d.step * 0), "more than one step where there are several"),
        (lambda d, s, g: dataclasses.replace(d, step_sizes=(8, 8)), r"step_sizes of every image, got \(8, 8\)"),
        (torn, "tokens of a segment to share a step"),
        (foreign, "a generator of another device to be refused"),
        (lambda d, s, g: unchecked(d, order=d.order[:1]), r"order \[B, N\] of shape \(3, 16\)"),
        (lambda d, s, g: (d.order, d.step), "expected a Serialization, got tuple"),
    ],
)
def test_broken_serializers_are_found(change, message):
    with pytest.raises(RoleError, match=message):
        check_serializer(spoiled(change))


def test_a_serializer_that_orders_images_by_each_other_is_found():
    def roll(draw, segments, generator):  # segments change places where the image is not the first
        rows = [sb.OrderedSerializer()(dataclasses.replace(segments, levels=(ids,))) for ids in _flipped(segments)]
        return sb.Serialization(*(torch.cat([getattr(row, k) for row in rows]) for k in ("order", "step")))

    def _flipped(segments):
        ids = segments.levels[0]
        return [(segments.counts[0] - 1 - row if i else row)[None] for i, row in enumerate(ids)]

    with pytest.raises(RoleError, match=r"an image alone to have the order .*, got another order of image 1"):
        check_serializer(spoiled(roll), segments=[sb.SquarePartitioner(sides=(2,))(torch.zeros(3, 1, 1, 1), GRID)])


# Mask builders


def altered(base=None, **changes):
    base = sb.SegmentCausalMask() if base is None else base

    def mask(serialization, encoded, predicted, num_prefix, predict_first=False):
        masks = base(serialization, encoded, predicted, num_prefix, predict_first)
        new = {name: change(getattr(masks, name), num_prefix) for name, change in changes.items()}
        return unchecked(masks, **new)

    return mask


def prefix_sees_all(source, num_prefix):
    return source | (torch.arange(source.shape[-1], device=source.device) < num_prefix)[:, None]


def own_step(serialization, encoded, predicted, num_prefix, predict_first=False):
    masks = sb.SegmentCausalMask()(serialization, encoded, predicted, num_prefix, predict_first)
    step = serialization.step if serialization.step_sizes is None else serialization.step[:1]
    memory = torch.nn.functional.pad(step[:, None, encoded] <= step[:, predicted, None], (num_prefix, 0), value=True)
    return dataclasses.replace(masks, memory=memory[:, None])


def of_first_image(serialization, encoded, predicted, num_prefix, predict_first=False):
    one = dataclasses.replace(serialization, order=serialization.order[:1], step=serialization.step[:1])
    return sb.SegmentCausalMask()(one, encoded, predicted, num_prefix, predict_first)


def seen_by_dropped(serialization, encoded, predicted, num_prefix, predict_first=False):
    """Queries of the first step, which the windows drop, are seen by all."""
    return dataclasses.replace(
        sb.SegmentCausalMask()(serialization, encoded, predicted, num_prefix, predict_first),
        target=sb.SegmentCausalMask()(serialization, encoded, predicted, num_prefix, predict_first=True).target,
    )


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (own_step, "no query to hear of content of its own or a later step .*, got a query of step 1 .* step 1"),
        (altered(source=prefix_sees_all), "no query to hear of content of its own or a later step"),
        (altered(source=lambda mask, _: mask | True), "no query to hear of content"),  # by other content
        (altered(target=lambda mask, _: mask | True), "no query to hear of content"),  # by other queries
        (of_first_image, "no query to hear of content"),
        (altered(memory=lambda mask, _: mask & False), "some query to see some content, got none that does"),
        (altered(memory=lambda mask, _: mask.float()), r"masks.memory .* torch.bool, got .* torch.float32"),
        (altered(memory=lambda mask, _: mask[:, 0]), r"masks.memory .* of shape"),
        (altered(memory=lambda mask, p: mask[..., p:]), r"masks.memory \(num_prefix=2"),
        (altered(target=lambda mask, _: mask & (torch.rand(mask.shape) > 0.5)), "the same masks in a second call"),
        (seen_by_dropped, "what the windows leave out to be seen by nothing that they keep"),
        (lambda *_: None, "expected AttentionMasks, got NoneType"),
    ],
)
def test_broken_mask_builders_are_found(broken, message):
    with pytest.raises(RoleError, match=message):
        check_mask_builder(broken)


def test_masks_that_differ_between_windows_and_the_whole_are_found():
    def short(serialization, encoded, predicted, num_prefix, predict_first=False):
        masks = sb.SegmentCausalMask()(serialization, encoded, predicted, num_prefix, predict_first)
        if serialization.step_sizes is None:
            return masks
        return dataclasses.replace(masks, memory=masks.memory & (torch.arange(masks.memory.shape[-1]) != 0))

    with pytest.raises(RoleError, match=r"masks.memory of the whole sequence as of its windows .*, got another one"):
        check_mask_builder(on_any_device(short))


def on_any_device(mask):
    def build(serialization, *rest):
        on_cpu = serialization.order.device.type == "cpu"
        return (mask if on_cpu else sb.SegmentCausalMask())(serialization, *rest)

    return build


def test_queries_that_see_nothing_are_allowed():
    """Each query sees the step before alone, and the second step none."""

    def local(serialization, encoded, predicted, num_prefix, predict_first=False):
        masks = sb.SegmentCausalMask()(serialization, encoded, predicted, num_prefix, predict_first)
        step = serialization.step if serialization.step_sizes is None else serialization.step[:1]
        memory = step[:, None, encoded] == step[:, predicted, None] - 2
        memory = torch.nn.functional.pad(memory, (num_prefix, 0), value=False)
        return dataclasses.replace(masks, memory=memory[:, None])

    assert not check_mask_builder(local).not_applicable


def test_a_builder_that_refuses_everything_is_found():
    def refuse(*_):
        raise ValueError("no")

    with pytest.raises(RoleError, match="masks for some serialization, got a ValueError for each"):
        check_mask_builder(refuse)
