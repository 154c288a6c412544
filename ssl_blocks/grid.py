"""Tokens along the axes of an image, a volume or a signal."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_blocks.doors import checked

MOST_TOKENS = 2**31 - 1


@checked
@dataclass(frozen=True, init=False, repr=False)
class Grid:
    """Tokens along every axis: height and width of an image, depth, height and width of a volume, length of a signal.

    Positions count in raster order: the last axis runs fastest.

    Args:
        sizes: tokens along each axis, at least one.

    Raises:
        TypeError: if a size is no whole number.
        ValueError: if there is no size, one is smaller than 1, or there are more tokens than can be counted.

    Examples:
        >>> str(Grid(4, 6)), Grid(4, 6).num_tokens, Grid(4, 6).width
        ('4x6', 24, 6)
        >>> Grid(2, 4, 6).ndim, Grid(2, 4, 6).num_tokens
        (3, 48)
    """

    sizes: tuple[int, ...]

    def __init__(self, *sizes: int) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"Grid{sizes} must have at least one size, and every size must be at least 1")
        if math.prod(sizes) > MOST_TOKENS:
            raise ValueError(f"Grid{sizes} has {math.prod(sizes):,} tokens, but at most {MOST_TOKENS:,} can be counted")
        object.__setattr__(self, "sizes", sizes)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.sizes)

    @property
    def num_tokens(self) -> int:
        """Number of cells, ``N`` in every shape of this library."""
        return math.prod(self.sizes)

    @property
    def height(self) -> int:
        """Rows of a grid of two dimensions; a `ValueError` for others."""
        return self._plane[0]

    @property
    def width(self) -> int:
        """Columns of a grid of two dimensions; a `ValueError` for others."""
        return self._plane[1]

    @property
    def _plane(self) -> tuple[int, int]:
        if len(self.sizes) != 2:
            raise ValueError(f"grid {self} has {self.ndim} dimension(s), but height and width are of grids of two")
        return self.sizes[0], self.sizes[1]

    def coordinates(self, device: torch.device | str | None = None) -> tuple[Int[Tensor, " n"], ...]:
        """Where every token lies: one ``[N]`` for each axis, rows and columns of an image.

        Examples:
            >>> Grid(2, 3).coordinates()
            (tensor([0, 0, 0, 1, 1, 1]), tensor([0, 1, 2, 0, 1, 2]))
        """
        token, inner = torch.arange(self.num_tokens, device=device), self.num_tokens
        found = []
        for size in self.sizes:
            inner //= size  # tokens in one step along this axis
            found.append(token // inner % size)
        return tuple(found)

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes))

    def __repr__(self) -> str:
        return f"Grid({', '.join(map(str, self.sizes))})"


@checked
def axis_names(ndim: int) -> tuple[str, ...]:
    """What errors call the axes: height and width of an image, else their numbers."""
    return ("height", "width") if ndim == 2 else tuple(f"axis {number}" for number in range(ndim))
