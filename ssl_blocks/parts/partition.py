"""Partitioners say which segment every token belongs to."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.bounds import Clusters, Count, Share, Tokens
from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid, axis_names
from ssl_blocks.parts.tokenize import Images
from ssl_blocks.randomness import check_generator, random_ranks
from ssl_blocks.values import Segments, gather_tokens


@runtime_checkable
class SegmentPartitioner(Protocol):
    """Draws one partition of the grid per image."""

    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> Segments:
        """Return segment ids ``[B, N]`` per level on the images' device, finest first.

        Args:
            images: ``[B, C, H, W]``, or of other axes; most partitioners read only their number and device.
            grid: the tokens' grid, ``N`` cells.
            generator: source of randomness on the images' device; ``None`` uses torch's default.
        """
        ...


@checked
class TokenPartitioner:
    """Make every token a segment of its own (pixel-raster, patch-raster and patch-random in RandSAC, Tables 1 and 2).

    Examples:
        >>> TokenPartitioner()(torch.rand(1, 3, 8, 8), Grid(2, 2)).levels[0]
        tensor([[0, 1, 2, 3]])
    """

    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> Segments:
        """Return ids equal to the raster position; nothing is drawn."""
        ids, n = torch.arange(grid.num_tokens, device=images.device), grid.num_tokens
        return Segments(levels=(ids.expand(len(images), n),), counts=(n,), step_sizes=(1,) * n)


@checked
class SquarePartitioner:
    """Cut the grid into squares, and those into partitions of larger squares (RandSAC, Sec. 3.1 and 3.4).

    A volume's grid is cut into cubes, a signal's into stretches.

    Args:
        sides: side of the squares in tokens, the paper's M, finest level first: ``(2,)`` on an 8x8 grid makes
            16 segments; ``(2, 4)`` groups them into 4 partitions (the paper's 16→4).

    Raises:
        ValueError: if a side is smaller than 1, does not divide the next, or (when called) the grid.

    Examples:
        >>> SquarePartitioner(sides=(1, 2))(torch.rand(1, 3, 8, 8), Grid(2, 4)).levels[1]
        tensor([[0, 0, 1, 1, 0, 0, 1, 1]])
    """

    def __init__(self, *, sides: Sequence[Tokens]) -> None:
        self.sides = tuple(sides)
        if not self.sides or min(self.sides) < 1:
            raise ValueError(f"sides={self.sides} must name at least one side of at least 1 token")
        for fine, coarse in zip(self.sides[:-1], self.sides[1:], strict=True):
            if coarse % fine or coarse == fine:
                raise ValueError(
                    f"sides={self.sides} must grow from level to level, each a multiple of the one before "
                    f"({coarse} is not a larger multiple of {fine})"
                )

    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> Segments:
        """Return square ids in raster order of the squares; nothing is drawn."""
        for name, length in zip(axis_names(grid.ndim), grid.sizes, strict=True):
            for side in self.sides:
                if length % side:
                    raise ValueError(
                        f"sides={self.sides} must divide the grid {grid} ({name} {length} is not a multiple of {side})"
                    )
        levels = tuple(_square_ids(grid, side, images.device).expand(len(images), -1) for side in self.sides)
        counts = tuple(grid.num_tokens // side**grid.ndim for side in self.sides)
        return Segments(levels=levels, counts=counts, step_sizes=(self.sides[0] ** grid.ndim,) * counts[0])


def _square_ids(grid: Grid, side: int, device: torch.device) -> Int[Tensor, " n"]:
    ids = torch.zeros(grid.num_tokens, dtype=torch.int64, device=device)
    for size, place in zip(grid.sizes, grid.coordinates(device), strict=True):
        ids = ids * (size // side) + place // side
    return ids


@checked
class BlobPartitioner:
    """Draw irregular regions: every token goes to the nearest of K random Gaussians (RandSAC, Sec. 3.1, eq. 1).

    Token centres span ``linspace(-2, 2)`` along every axis. Each Gaussian has a mean and a standard deviation for each
    axis, drawn uniformly (axis-aligned ellipses); nearest is meant by Mahalanobis distance. Coarser levels group whole
    segments: each goes to the coarse Gaussian nearest to its own mean, so levels are nested. A segment may come out
    empty or in several pieces. The paper leaves the ranges open; ``std_range`` is an assumption of this library.

    Args:
        counts: number of Gaussians per level, finest first: ``(7, 3)`` is the paper's 7→3.
        mean_range: lowest and highest mean, in units of the token coordinates.
        std_range: lowest and highest standard deviation, in the same units.

    Raises:
        ValueError: if a count is smaller than 1 or grows from level to level, or a range is not ascending
            (standard deviations: positive).

    Examples:
        >>> segments = BlobPartitioner(counts=(7, 3))(torch.rand(4, 3, 8, 8), Grid(8, 8))
        >>> segments.levels[0].shape, segments.counts
        (torch.Size([4, 64]), (7, 3))
    """

    def __init__(
        self,
        *,
        counts: Sequence[Clusters],
        mean_range: tuple[float, float] = (-2.0, 2.0),
        std_range: tuple[float, float] = (0.5, 1.5),
    ) -> None:
        self.counts, self.mean_range, self.std_range = tuple(counts), mean_range, std_range
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"counts={self.counts} must name at least one number of segments of at least 1")
        for fine, coarse in zip(self.counts[:-1], self.counts[1:], strict=True):
            if coarse >= fine:
                raise ValueError(
                    f"counts={self.counts} must fall from level to level, finest first ({coarse} is not below {fine})"
                )
        if not mean_range[0] <= mean_range[1]:
            raise ValueError(f"mean_range={mean_range} must be (lowest, highest)")
        if not 0 < std_range[0] <= std_range[1]:
            raise ValueError(f"std_range={std_range} must be (lowest, highest), both above 0")

    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> Segments:
        """Draw one set of Gaussians per level and image."""
        check_generator(generator, images.device)
        batch, device = len(images), images.device
        points = torch.cartesian_prod(*(torch.linspace(-2, 2, size, device=device) for size in grid.sizes))
        points = points.reshape(-1, grid.ndim).expand(batch, -1, -1)
        levels: list[Tensor] = []
        for count in self.counts:
            means = _uniform((batch, count, grid.ndim), self.mean_range, generator, device)
            stds = _uniform((batch, count, grid.ndim), self.std_range, generator, device)
            nearest = nearest_gaussian(points, means, stds)
            levels.append(nearest.gather(1, levels[-1]) if levels else nearest)
            points = means  # the next level groups these segments
        return Segments(levels=tuple(levels), counts=self.counts)


def _uniform(
    shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    return torch.rand(shape, generator=generator, device=device) * (bounds[1] - bounds[0]) + bounds[0]


def nearest_gaussian(
    points: Float[Tensor, "b n a"], means: Float[Tensor, "b k a"], stds: Float[Tensor, "b k a"]
) -> Int[Tensor, "b n"]:
    """Index of the Gaussian with the smallest Mahalanobis distance to each point, per image."""
    offsets = (points[:, :, None] - means[:, None]) / stds[:, None]
    return offsets.square().sum(-1).argmin(-1)


@checked
class SubsetPartitioner:
    """Hide a share of the tokens at random; id 0 is what stays visible (MAE, Sec. 3).

    As many are kept as ``int(N * (1 - hidden))``, truncated as MAE does. Several shares make several hidden subsets,
    ids 1, 2 and so on; the last takes what is left over. SimMIM hides squares of tokens instead of single ones.

    Args:
        hidden: share of the tokens that is hidden, or one share for each of several hidden subsets.
        side: side in tokens of the squares (cubes, stretches) that are hidden or kept as a whole.

    Raises:
        ValueError: if the shares are not positive and below 1 in all, or (when called) a subset would get no token or
            squares do not divide the grid.

    Examples:
        >>> segments = SubsetPartitioner(hidden=0.75)(torch.rand(2, 3, 32, 32), Grid(8, 8))
        >>> segments.step_sizes, int((segments.levels[0][0] == 0).sum())
        ((16, 48), 16)
    """

    def __init__(self, *, hidden: float | Sequence[float], side: Tokens = 1) -> None:
        self.hidden = tuple(hidden) if isinstance(hidden, Sequence) else (float(hidden),)
        self.squares = SquarePartitioner(sides=(side,))
        if not self.hidden or min(self.hidden) <= 0 or sum(self.hidden) >= 1:
            raise ValueError(f"hidden={hidden} must be one or more shares above 0 that add up to less than 1")

    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> Segments:
        """Draw the subsets anew for every image."""
        check_generator(generator, images.device)
        squares = self.squares(images, grid)
        n = squares.counts[0]
        sizes = [int(n * (1 - sum(self.hidden))), *(int(n * share) for share in self.hidden[:-1])]
        sizes.append(n - sum(sizes))
        if min(sizes) < 1:
            raise ValueError(
                f"hidden={self.hidden} must leave every subset a token, but gives sizes {tuple(sizes)} on a {grid} grid"
            )
        ranks = random_ranks(len(images), n, generator=generator, device=images.device)
        ids = torch.stack([ranks >= bound for bound in accumulate(sizes[:-1])]).sum(0)  # no bounds to copy to a device
        step_sizes = tuple(size * (grid.num_tokens // n) for size in sizes)
        return Segments(levels=(gather_tokens(ids, squares.levels[0]),), counts=(len(sizes),), step_sizes=step_sizes)


@checked
class BlockSubsetPartitioner:
    """Hide tokens in rectangular blocks; id 0 is what stays visible (MAE, Fig. 6; BEiT, Sec. 2.3).

    Blocks are drawn one after the other until enough tokens are covered; of the last one as many as are needed. So
    every image hides the same number. In a volume they are boxes, in a signal stretches.

    Args:
        hidden: share of the tokens that is hidden; what is kept is truncated, as in MAE.
        area: smallest and largest area of a block, as a share of the grid.
        aspect: smallest height / width of a block, and of any side by the last; the largest is its inverse.

    Raises:
        ValueError: if a share lies outside (0, 1), or (when called) no token or all would be hidden.

    Examples:
        >>> segments = BlockSubsetPartitioner(hidden=0.5)(torch.rand(2, 3, 32, 32), Grid(8, 8))
        >>> segments.step_sizes
        (32, 32)
    """

    def __init__(self, *, hidden: float, area: tuple[Share, Share] = (0.08, 0.3), aspect: float = 0.3) -> None:
        self.hidden, self.area, self.aspect = hidden, area, aspect
        if not 0 < hidden < 1:
            raise ValueError(f"hidden={hidden} must lie between 0 and 1, both excluded")
        if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect <= 1:
            raise ValueError(f"area={area} and aspect={aspect} must be shares above 0 and at most 1, area ascending")

    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> Segments:
        """Draw the blocks anew for every image."""
        check_generator(generator, images.device)
        batch, device = len(images), images.device
        kept = int(grid.num_tokens * (1 - self.hidden))
        if not 0 < kept < grid.num_tokens:
            raise ValueError(
                f"hidden={self.hidden} keeps {kept} of the {grid.num_tokens} tokens, expected some but not all"
            )
        count = int(4 / self.area[0])  # blocks overlap; what all of them leave uncovered comes last
        u = torch.rand(2 * grid.ndim, batch, count, generator=generator, device=device)
        share, chances = self.area[0] + (self.area[1] - self.area[0]) * u[0], u[grid.ndim :]
        shapes = [(2 * draw - 1).mul(math.log(1 / self.aspect)).exp() for draw in u[1 : grid.ndim]]
        shapes.append(torch.ones_like(share))  # log-uniform side / last side, and 1 for the last side itself
        covered = torch.ones(batch, count, grid.num_tokens, dtype=torch.bool, device=device)
        for axis, (place, length) in enumerate(zip(grid.coordinates(device), grid.sizes, strict=True)):
            volume = grid.num_tokens * share
            for other in shapes[:axis] + shapes[axis + 1 :]:
                volume = volume * shapes[axis] / other
            extent = (volume ** (1 / grid.ndim)).round().clamp(1, length)
            start = (chances[axis] * (length - extent + 1)).floor()[..., None]
            covered &= (place >= start) & (place < start + extent[..., None])
        first = torch.where(covered.any(1), covered.int().argmax(1), count)  # which block covers a token first
        order = (first + torch.rand(batch, grid.num_tokens, generator=generator, device=device)).argsort(1)
        hidden = torch.zeros(batch, grid.num_tokens, dtype=torch.int64, device=device)
        ids = hidden.scatter(1, order[:, : grid.num_tokens - kept], 1)
        return Segments(levels=(ids,), counts=(2,), step_sizes=(kept, grid.num_tokens - kept))


@checked
class GridSubsetPartitioner:
    """Keep one token of every square of ``period`` x ``period`` tokens: id 0 (MAE, Fig. 6); of every cube in a volume.

    Args:
        period: side of the squares in tokens; 2 hides three quarters of an image.

    Raises:
        ValueError: if the period is smaller than 2, or (when called) does not divide the grid.

    Examples:
        >>> GridSubsetPartitioner(period=2)(torch.rand(1, 3, 8, 8), Grid(2, 4)).levels[0].tolist()
        [[0, 1, 0, 1, 1, 1, 1, 1]]
    """

    def __init__(self, *, period: Count) -> None:
        if period < 2:
            raise ValueError(f"period={period} must be at least 2")
        self.period = period

    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> Segments:
        """The same for every image; nothing is drawn."""
        check_generator(generator, images.device)
        if any(size % self.period for size in grid.sizes):
            raise ValueError(f"period={self.period} must divide the grid {grid}")
        is_kept = (torch.stack(grid.coordinates(images.device)) % self.period == 0).all(0)
        kept = grid.num_tokens // self.period**grid.ndim
        ids = (~is_kept).long().expand(len(images), -1)
        return Segments(levels=(ids,), counts=(2,), step_sizes=(kept, grid.num_tokens - kept))


@checked
class ShuffledPartitioner:
    """Scatter the tokens of another partition at random: the incoherent control of RandSAC, Table 5.

    Segment sizes and nesting stay as the base partitioner made them.

    Args:
        base: the partitioner whose segments are scattered.

    Examples:
        >>> segments = ShuffledPartitioner(base=SquarePartitioner(sides=(2,)))(torch.rand(1, 3, 8, 8), Grid(4, 4))
        >>> torch.bincount(segments.levels[0][0]).tolist()
        [4, 4, 4, 4]
    """

    def __init__(self, *, base: SegmentPartitioner) -> None:
        self.base = base

    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> Segments:
        """Draw the base partition, then one permutation of the tokens per image."""
        check_generator(generator, images.device)
        segments = self.base(images, grid, generator=generator)
        places = random_ranks(len(images), grid.num_tokens, generator=generator, device=images.device)
        levels = tuple(gather_tokens(ids, places) for ids in segments.levels)
        return Segments(levels=levels, counts=segments.counts, step_sizes=segments.step_sizes)


@checked
class TubePartitioner:
    """Cut all places along the first axis alike: tubes through time, or the same places in every channel (VideoMAE).

    What is hidden in one frame is hidden in all, or it could be copied from the frame beside it.

    Args:
        base: cuts the grid of the other axes.

    Raises:
        ValueError: when called on a grid of one axis.

    Examples:
        >>> tubes = TubePartitioner(base=SubsetPartitioner(hidden=0.75))
        >>> segments = tubes(torch.rand(2, 1, 4, 8, 8), Grid(3, 2, 2))
        >>> segments.step_sizes, bool((segments.levels[0][:, :4] == segments.levels[0][:, 4:8]).all())
        ((3, 9), True)
    """

    def __init__(self, *, base: SegmentPartitioner) -> None:
        self.base = base

    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> Segments:
        """Draw the base partition of one slice, and repeat it along the first axis."""
        if grid.ndim < 2:
            raise ValueError(f"TubePartitioner needs a grid of at least two axes, got {grid}")
        length, one = grid.sizes[0], self.base(images, Grid(*grid.sizes[1:]), generator=generator)
        sizes = None if one.step_sizes is None else tuple(length * size for size in one.step_sizes)
        return Segments(levels=tuple(ids.repeat(1, length) for ids in one.levels), counts=one.counts, step_sizes=sizes)
