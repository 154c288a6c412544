"""Checks for what draws: partitioners and serializers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_blocks.grid import Grid
from ssl_blocks.parts.partition import (
    BlobPartitioner,
    SegmentPartitioner,
    SquarePartitioner,
    SubsetPartitioner,
    TokenPartitioner,
)
from ssl_blocks.parts.serialize import Serializer
from ssl_blocks.testing.role_case import (
    Role,
    RoleReport,
    check_sampling,
    check_undrawn,
    mapped,
    noise,
    require_several,
    rows_of,
    same,
    seeded,
)
from ssl_blocks.testing.waits import check_waits
from ssl_blocks.values import Segments, Serialization, gather_tokens


def check_partitioner(
    partitioner: SegmentPartitioner,
    *,
    grid: Grid | None = None,
    images: Float[Tensor, "b c *s"] | None = None,
    looks: bool = False,
) -> RoleReport:
    """Prove that a partitioner keeps the promises of ``SegmentPartitioner``.

    Ids are int64, lie within their counts and are nested; ``step_sizes``, where there are any, hold in every image.
    Draws follow the generator and nothing else, differ from seed to seed and from image to image, are made on the
    images' device, and refuse a generator of another one. Segments of an image depend on no other one; where nothing is
    drawn, an image alone is cut as in a batch. Images stay as they are.

    Args:
        partitioner: the partitioner.
        grid: tokens to cut; 8x8 by default.
        images: what they are cut of, at least 2; plain noise by default. Give others where segments depend on them.
        looks: whether it looks at images in a way that an accelerator has to wait for, as superpixels on CPU do.

    Examples:
        >>> from ssl_blocks import SquarePartitioner
        >>> check_partitioner(SquarePartitioner(sides=(2, 4))).passed
        ('segments', 'randomness', 'images in a batch')
    """
    grid = Grid(8, 8) if grid is None else grid
    if images is None:
        images = noise(torch.device("cpu"), 3, 3, *(4 * size for size in grid.sizes))
    require_several(len(images))
    return _PartitionerCase(partitioner, grid, images, looks).run()


@dataclass(frozen=True)
class _PartitionerCase(Role):
    name = "partitioner"
    grid: Grid
    images: Tensor
    looks: bool

    def _draw(self, images: Tensor, generator: torch.Generator | None = None) -> Any:
        return self.part(images, self.grid, generator=generator)

    def segments(self) -> None:
        before = self.images.clone()
        for count in (len(before), 1):
            self._check(self._draw(self.images[:count], seeded(before.device)), count)
        if not torch.equal(before, self.images):
            self.fail("images as they were", "changed ones")

    def _check(self, found: object, batch: int) -> None:
        if not isinstance(found, Segments):
            self.fail("Segments", type(found).__name__)
        for ids in found.levels:
            self.expect_shape("ids of a level [B, N]", ids, (batch, self.grid.num_tokens), torch.int64)
        try:
            found.check()
        except ValueError as error:
            self.fail("segments that hold together", f"these: {error}")

    def randomness(self) -> None:
        device = self.images.device
        draws = check_sampling(self, lambda g, where: self._draw(self.images.to(where), g), device, looks=self.looks)
        if not self.looks:
            check_waits(self, self._draw, self.images)
        twins = self.images[:1].expand_as(self.images)
        drawn = [self._draw(twins, seeded(device, seed)) for seed in range(8)] if draws else []
        if draws and all(torch.equal(ids, ids[:1].expand_as(ids)) for one in drawn for ids in one.levels):
            self.fail("a draw of its own for every image", "one that all images of a batch share")
        other = torch.cat([self.images[:-1], self.images[-1:].flip(-1, -2) + 1])
        both = (self._draw(images, seeded(device)).levels for images in (self.images, other))
        if draws and not same(*(rows_of(levels, slice(0, -1), len(other)) for levels in both)):
            self.fail("segments of an image that depend on no other", "others where another image is changed")

    def images_in_a_batch(self) -> str | None:
        images = self.images
        return check_undrawn(
            self, "cut", lambda g, _: self._draw(images, g).levels, lambda i: self._draw(images[i]).levels, images
        )


def check_serializer(serializer: Serializer, *, segments: Sequence[Segments] | None = None) -> RoleReport:
    """Prove that a serializer keeps the promises of ``Serializer``.

    ``order`` is a permutation in every image; steps start from 0 and rise by at most 1; tokens of a segment share a
    step, and not all segments do; ``step_sizes``, where there are any, hold in every image. Draws follow the generator
    and nothing else, and are made on the segments' device. Where nothing is drawn, an image alone is read as
    in a batch.

    Args:
        serializer: the serializer.
        segments: what is read; by default tokens, squares in two levels, subsets of several sizes, and blobs, some of
            which are empty.

    Examples:
        >>> from ssl_blocks import RandomSerializer
        >>> check_serializer(RandomSerializer()).not_applicable
        {'images in a batch': 'the order is drawn at random'}
    """
    return _SerializerCase(serializer, some_segments() if segments is None else segments).run()


@dataclass(frozen=True)
class _SerializerCase(Role):
    name = "serializer"
    given: Sequence[Segments]

    def reading(self) -> None:
        for one in self.given:
            _check_reading(self, self.part(one, generator=seeded(one.levels[0].device)), one)

    def randomness(self) -> None:
        def sample(generator: torch.Generator | None, device: torch.device) -> Any:
            moved = mapped(list(self.given), lambda x: x.to(device))
            return [self.part(one, generator=generator) for one in moved]

        check_sampling(self, sample, self.given[0].levels[0].device, looks=False)
        check_waits(self, lambda given: list(map(self.part, given)), list(self.given))

    def images_in_a_batch(self) -> str | None:
        return next(filter(None, map(self._alone, self.given)), None)

    def _alone(self, one: Segments) -> str | None:
        ids = one.levels[0]
        return check_undrawn(
            self,
            "order",
            lambda generator, _: self.part(one, generator=generator),
            lambda rows: self.part(rows_of(one, rows, len(ids))),
            ids,
        )


def some_segments(grid: Grid | None = None, batch: int = 3) -> list[Segments]:
    """Tokens, squares in two levels, subsets of several sizes, and blobs, some of which are empty."""
    grid, blank = Grid(4, 4) if grid is None else grid, torch.zeros(batch, 1, 1, 1)
    kinds: tuple[SegmentPartitioner, ...] = (
        TokenPartitioner(),
        SquarePartitioner(sides=(1, 2)),
        SubsetPartitioner(hidden=(0.25, 0.5)),
        SubsetPartitioner(hidden=0.7),
        BlobPartitioner(counts=(9, 3)),
    )
    return [kind(blank, grid, generator=seeded(blank.device)) for kind in kinds]


def _check_reading(role: Role, found: object, segments: Segments) -> None:
    if not isinstance(found, Serialization):
        role.fail("a Serialization", type(found).__name__)
    ids, shape = segments.levels[0], tuple(segments.levels[0].shape)
    role.expect_shape("order [B, N]", found.order, shape, torch.int64)
    role.expect_shape("step [B, N]", found.step, shape, torch.int64)
    for i, (order, step) in enumerate(zip(found.order, found.step, strict=True)):
        if not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
            role.fail("order to hold every position once", f"{order.tolist()} of image {i}")
        rises = step.diff()
        if int(step[0]) != 0 or bool(((rises != 0) & (rises != 1)).any()):
            role.fail("steps from 0 that rise by 0 or 1 from slot to slot", f"{step.tolist()} of image {i}")
        if int(step[-1]) == 0 and bool((ids[i] != ids[i, 0]).any()):
            role.fail("more than one step where there are several segments", f"a single one of image {i}")
        sizes = step.bincount().tolist()
        if found.step_sizes is not None and list(found.step_sizes) != sizes:
            role.fail("step_sizes of every image", f"{found.step_sizes}, but steps of {sizes} tokens of image {i}")
    read = gather_tokens(ids, found.order)
    first = torch.full((len(ids), segments.counts[0]), -1, device=ids.device).scatter(1, read, found.step)
    for i in (gather_tokens(first, read) != found.step).any(1).nonzero().flatten()[:1].tolist():
        role.fail("tokens of a segment to share a step", f"several steps of one segment in image {i}")
