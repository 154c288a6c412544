"""Partitioners say which segment every token belongs to."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.randomness import check_generator, random_ranks
from ssl_blocks.values import Grid, Segments, gather_tokens

Device = torch.device | str | None


@runtime_checkable
class SegmentPartitioner(Protocol):
    """Draws one partition of the grid per image."""

    def __call__(
        self, batch: int, grid: Grid, *, generator: torch.Generator | None = None, device: Device = None
    ) -> Segments:
        """Return segment ids ``[batch, N]`` per level, finest first.

        Args:
            batch: number of images.
            grid: the tokens' grid, ``N`` cells.
            generator: source of randomness on ``device``; ``None`` uses torch's default.
            device: where the ids shall live.
        """
        ...


class TokenPartitioner:
    """Make every token a segment of its own (pixel-raster, patch-raster and patch-random in RandSAC, Tables 1 and 2).

    Examples:
        >>> TokenPartitioner()(1, Grid(2, 2)).levels[0]
        tensor([[0, 1, 2, 3]])
    """

    def __call__(
        self, batch: int, grid: Grid, *, generator: torch.Generator | None = None, device: Device = None
    ) -> Segments:
        """Return ids equal to the raster position; nothing is drawn."""
        n = grid.num_tokens
        ids = torch.arange(n, device=device).expand(batch, n)
        return Segments(levels=(ids,), counts=(n,), step_sizes=(1,) * n)


class SquarePartitioner:
    """Cut the grid into squares, and those into partitions of larger squares (RandSAC, Sec. 3.1 and 3.4).

    Args:
        sides: side of the squares in tokens, the paper's M, finest level first: ``(2,)`` on an 8x8 grid makes
            16 segments; ``(2, 4)`` groups them into 4 partitions (the paper's 16→4).

    Raises:
        ValueError: if a side is smaller than 1, does not divide the next, or (when called) the grid.

    Examples:
        >>> SquarePartitioner(sides=(1, 2))(1, Grid(2, 4)).levels[1]
        tensor([[0, 0, 1, 1, 0, 0, 1, 1]])
    """

    def __init__(self, *, sides: Sequence[int]) -> None:
        self.sides = tuple(sides)
        if not self.sides or min(self.sides) < 1:
            raise ValueError(f"sides={self.sides} must name at least one side of at least 1 token")
        for fine, coarse in zip(self.sides[:-1], self.sides[1:], strict=True):
            if coarse % fine or coarse == fine:
                raise ValueError(
                    f"sides={self.sides} must grow from level to level, each a multiple of the one before "
                    f"({coarse} is not a larger multiple of {fine})"
                )

    def __call__(
        self, batch: int, grid: Grid, *, generator: torch.Generator | None = None, device: Device = None
    ) -> Segments:
        """Return square ids in raster order of the squares; nothing is drawn."""
        for name, length in (("height", grid.height), ("width", grid.width)):
            for side in self.sides:
                if length % side:
                    raise ValueError(
                        f"sides={self.sides} must divide the grid {grid} ({name} {length} is not a multiple of {side})"
                    )
        rows = torch.arange(grid.height, device=device)[:, None]
        columns = torch.arange(grid.width, device=device)[None, :]
        levels = tuple(
            (rows // side * (grid.width // side) + columns // side).flatten().expand(batch, -1) for side in self.sides
        )
        counts = tuple(grid.num_tokens // side**2 for side in self.sides)
        return Segments(levels=levels, counts=counts, step_sizes=(self.sides[0] ** 2,) * counts[0])


class BlobPartitioner:
    """Draw irregular regions: every token goes to the nearest of K random Gaussians (RandSAC, Sec. 3.1, eq. 1).

    Token centres span ``linspace(-2, 2)`` in both directions. Each Gaussian has a mean and two standard
    deviations drawn uniformly (axis-aligned ellipses); nearest is meant by Mahalanobis distance. Coarser levels
    group whole segments: each goes to the coarse Gaussian nearest to its own mean, so levels are nested.
    A segment may come out empty or in several pieces. The paper leaves the ranges open; ``std_range`` is an
    assumption of this library.

    Args:
        counts: number of Gaussians per level, finest first: ``(7, 3)`` is the paper's 7→3.
        mean_range: lowest and highest mean, in units of the token coordinates.
        std_range: lowest and highest standard deviation, in the same units.

    Raises:
        ValueError: if a count is smaller than 1 or grows from level to level, or a range is not ascending
            (standard deviations: positive).

    Examples:
        >>> segments = BlobPartitioner(counts=(7, 3))(4, Grid(8, 8), generator=torch.Generator().manual_seed(0))
        >>> segments.levels[0].shape, segments.counts
        (torch.Size([4, 64]), (7, 3))
    """

    def __init__(
        self,
        *,
        counts: Sequence[int],
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

    def __call__(
        self, batch: int, grid: Grid, *, generator: torch.Generator | None = None, device: Device = None
    ) -> Segments:
        """Draw one set of Gaussians per level and image."""
        check_generator(generator, device)
        rows = torch.linspace(-2, 2, grid.height, device=device)
        columns = torch.linspace(-2, 2, grid.width, device=device)
        points = torch.cartesian_prod(rows, columns).expand(batch, -1, -1)
        levels: list[Tensor] = []
        for count in self.counts:
            means = _uniform((batch, count, 2), self.mean_range, generator, device)
            stds = _uniform((batch, count, 2), self.std_range, generator, device)
            nearest = nearest_gaussian(points, means, stds)
            levels.append(nearest.gather(1, levels[-1]) if levels else nearest)
            points = means  # the next level groups these segments
        return Segments(levels=tuple(levels), counts=self.counts)


def _uniform(
    shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator | None, device: Device
) -> Tensor:
    return torch.rand(shape, generator=generator, device=device) * (bounds[1] - bounds[0]) + bounds[0]


def nearest_gaussian(
    points: Float[Tensor, "b n 2"], means: Float[Tensor, "b k 2"], stds: Float[Tensor, "b k 2"]
) -> Int[Tensor, "b n"]:
    """Index of the Gaussian with the smallest Mahalanobis distance to each point, per image."""
    offsets = (points[:, :, None] - means[:, None]) / stds[:, None]
    return offsets.square().sum(-1).argmin(-1)


class SubsetPartitioner:
    """Split the tokens at random into subsets of fixed sizes; id 0 is what MAE keeps visible.

    Sizes are ``int(N * ratio)``, truncated as MAE does; the last subset takes what is left over.

    Args:
        ratios: share of the tokens per subset, adding up to 1: ``(0.25, 0.75)`` is MAE's 75 % masking.

    Raises:
        ValueError: if the ratios do not add up to 1, or (when called) a subset would get no token.

    Examples:
        >>> segments = SubsetPartitioner(ratios=(0.25, 0.75))(2, Grid(8, 8))
        >>> segments.step_sizes, int((segments.levels[0][0] == 0).sum())
        ((16, 48), 16)
    """

    def __init__(self, *, ratios: Sequence[float]) -> None:
        self.ratios = tuple(ratios)
        if len(self.ratios) < 2 or min(self.ratios) <= 0 or abs(sum(self.ratios) - 1) > 1e-6:
            raise ValueError(f"ratios={self.ratios} must be two or more positive shares that add up to 1")

    def __call__(
        self, batch: int, grid: Grid, *, generator: torch.Generator | None = None, device: Device = None
    ) -> Segments:
        """Draw the subsets anew for every image."""
        check_generator(generator, device)
        n = grid.num_tokens
        sizes = [int(n * ratio) for ratio in self.ratios[:-1]]
        sizes.append(n - sum(sizes))
        if min(sizes) < 1:
            raise ValueError(
                f"ratios={self.ratios} must leave every subset a token, but give sizes {tuple(sizes)} on a {grid} grid"
            )
        bounds = torch.tensor(sizes, device=device).cumsum(0)[:-1]
        ids = torch.bucketize(random_ranks(batch, n, generator=generator, device=device), bounds, right=True)
        return Segments(levels=(ids,), counts=(len(sizes),), step_sizes=tuple(sizes))


class BlockSubsetPartitioner:
    """Hide tokens in rectangular blocks; id 0 is what stays visible (MAE, Fig. 6; BEiT, Sec. 2.3).

    Blocks are drawn one after the other until enough tokens are covered; of the last one as many as are needed. So
    every image hides the same number.

    Args:
        ratio: share of the tokens that is hidden; what is kept is truncated, as in MAE.
        area: smallest and largest area of a block, as a share of the grid.
        aspect: smallest height / width of a block; the largest is its inverse.

    Raises:
        ValueError: if a share lies outside (0, 1), or (when called) no token or all would be hidden.

    Examples:
        >>> segments = BlockSubsetPartitioner(ratio=0.5)(2, Grid(8, 8))
        >>> segments.step_sizes
        (32, 32)
    """

    def __init__(self, *, ratio: float, area: tuple[float, float] = (0.08, 0.3), aspect: float = 0.3) -> None:
        self.ratio, self.area, self.aspect = ratio, area, aspect
        _check_ratio(ratio)
        if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect <= 1:
            raise ValueError(f"area={area} and aspect={aspect} must be shares above 0 and at most 1, area ascending")

    def __call__(
        self, batch: int, grid: Grid, *, generator: torch.Generator | None = None, device: Device = None
    ) -> Segments:
        """Draw the blocks anew for every image."""
        check_generator(generator, device)
        kept = _num_kept(self.ratio, grid)
        count = int(4 / self.area[0])  # blocks overlap; what all of them leave uncovered comes last
        u = torch.rand(4, batch, count, generator=generator, device=device)
        share = self.area[0] + (self.area[1] - self.area[0]) * u[0]
        shape = (2 * u[1] - 1).mul(math.log(1 / self.aspect)).exp()  # log-uniform height / width
        row, column = self._spread(grid, device)
        sizes = (grid.num_tokens * share * shape).sqrt(), (grid.num_tokens * share / shape).sqrt()
        covered = torch.ones(batch, count, grid.num_tokens, dtype=torch.bool, device=device)
        for place, size, length, chance in ((row, sizes[0], grid.height, u[2]), (column, sizes[1], grid.width, u[3])):
            extent = size.round().clamp(1, length)
            start = (chance * (length - extent + 1)).floor()[..., None]
            covered &= (place >= start) & (place < start + extent[..., None])
        first = torch.where(covered.any(1), covered.int().argmax(1), count)  # which block covers a token first
        order = (first + torch.rand(batch, grid.num_tokens, generator=generator, device=device)).argsort(1)
        hidden = torch.zeros(batch, grid.num_tokens, dtype=torch.int64, device=device)
        ids = hidden.scatter(1, order[:, : grid.num_tokens - kept], 1)
        return Segments(levels=(ids,), counts=(2,), step_sizes=(kept, grid.num_tokens - kept))

    @staticmethod
    def _spread(grid: Grid, device: Device) -> tuple[Tensor, Tensor]:
        token = torch.arange(grid.num_tokens, device=device)
        return token // grid.width, token % grid.width


class GridSubsetPartitioner:
    """Keep one token of every square of ``period`` x ``period`` tokens: id 0 (MAE, Fig. 6).

    Args:
        period: side of the squares in tokens; 2 hides three quarters.

    Raises:
        ValueError: if the period is smaller than 2, or (when called) does not divide the grid.

    Examples:
        >>> GridSubsetPartitioner(period=2)(1, Grid(2, 4)).levels[0].tolist()
        [[0, 1, 0, 1, 1, 1, 1, 1]]
    """

    def __init__(self, *, period: int) -> None:
        if period < 2:
            raise ValueError(f"period={period} must be at least 2")
        self.period = period

    def __call__(
        self, batch: int, grid: Grid, *, generator: torch.Generator | None = None, device: Device = None
    ) -> Segments:
        """The same for every image; nothing is drawn."""
        check_generator(generator, device)
        if grid.height % self.period or grid.width % self.period:
            raise ValueError(f"period={self.period} must divide the grid {grid}")
        token = torch.arange(grid.num_tokens, device=device)
        is_kept = (token // grid.width % self.period == 0) & (token % grid.width % self.period == 0)
        kept = grid.num_tokens // self.period**2
        ids = (~is_kept).long().expand(batch, -1)
        return Segments(levels=(ids,), counts=(2,), step_sizes=(kept, grid.num_tokens - kept))


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio} must lie between 0 and 1, both excluded")


def _num_kept(ratio: float, grid: Grid) -> int:
    kept = int(grid.num_tokens * (1 - ratio))
    if not 0 < kept < grid.num_tokens:
        raise ValueError(f"ratio={ratio} keeps {kept} of the {grid.num_tokens} tokens, expected some but not all")
    return kept


class ShuffledPartitioner:
    """Scatter the tokens of another partition at random: the incoherent control of RandSAC, Table 5.

    Segment sizes and nesting stay as the base partitioner made them.

    Args:
        base: the partitioner whose segments are scattered.

    Examples:
        >>> segments = ShuffledPartitioner(base=SquarePartitioner(sides=(2,)))(1, Grid(4, 4))
        >>> torch.bincount(segments.levels[0][0]).tolist()
        [4, 4, 4, 4]
    """

    def __init__(self, *, base: SegmentPartitioner) -> None:
        self.base = base

    def __call__(
        self, batch: int, grid: Grid, *, generator: torch.Generator | None = None, device: Device = None
    ) -> Segments:
        """Draw the base partition, then one permutation of the tokens per image."""
        check_generator(generator, device)
        segments = self.base(batch, grid, generator=generator, device=device)
        places = random_ranks(batch, grid.num_tokens, generator=generator, device=device)
        levels = tuple(gather_tokens(ids, places) for ids in segments.levels)
        return Segments(levels=levels, counts=segments.counts, step_sizes=segments.step_sizes)
