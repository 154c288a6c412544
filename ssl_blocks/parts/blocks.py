"""Several blocks of an image that are predicted one by one, and may overlap, from what none of them covers."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_blocks.bounds import Count, Pixels
from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid
from ssl_blocks.parts.tokenize import Images
from ssl_blocks.randomness import check_generator


@checked
@dataclass(frozen=True, eq=False)
class TargetBlocks:
    """What is given of every image, and what is predicted from it, block by block.

    Args:
        given: ``[B, c]`` raster positions that are encoded.
        asked: ``[B, M, t]`` raster positions of ``M`` blocks; a position may lie in several, and in none.
    """

    given: Int[Tensor, "b c"]
    asked: Int[Tensor, "b m t"]


@runtime_checkable
class BlockSampler(Protocol):
    """Draws what is given and what is predicted of every image; none of the latter may be given."""

    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> TargetBlocks:
        """Draw for every image; the arguments are those of a partitioner."""
        ...


@checked
class RectangleSampler:
    """Draw rectangles of one size, and give what lies outside all of them (I-JEPA, Sec. 3).

    As many tokens are given as are left where no two rectangles overlap, so that shapes are the same in every draw and
    a compiled objective is one graph. Where they do overlap, the tokens in excess are neither given nor predicted, as
    I-JEPA leaves out what exceeds the smallest context of a batch. I-JEPA draws the size for every batch. On grids of
    other than two axes they are boxes of as many.

    Args:
        count: rectangles of an image.
        size: their height and width in tokens; one number for each axis of the grid.

    Raises:
        ValueError: if a number is below 1, or (when called) rectangles do not fit the grid or leave nothing to give.

    Examples:
        >>> blocks = RectangleSampler(count=4, size=(3, 3))(torch.rand(2, 3, 32, 32), Grid(8, 8))
        >>> blocks.given.shape, blocks.asked.shape
        (torch.Size([2, 28]), torch.Size([2, 4, 9]))
    """

    def __init__(self, *, count: Count = 4, size: tuple[Pixels, ...]) -> None:
        self.count, self.size = count, size

    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> TargetBlocks:
        """Draw the rectangles anew for every image."""
        check_generator(generator, images.device)
        device, batch, volume = images.device, len(images), math.prod(self.size)
        free = grid.num_tokens - self.count * volume
        fits = len(self.size) == grid.ndim and all(a <= b for a, b in zip(self.size, grid.sizes, strict=True))
        if not fits or free < 1:
            raise ValueError(f"count={self.count} rectangles of size={self.size} must leave tokens of the {grid} grid")
        chance = torch.rand(grid.ndim, batch, self.count, 1, generator=generator, device=device)
        asked = torch.zeros(batch, self.count, volume, dtype=torch.int64, device=device)
        inside = Grid(*self.size).coordinates(device)
        for along, length, extent, some in zip(inside, grid.sizes, self.size, chance, strict=True):
            asked = asked * length + (some * (length - extent + 1)).long() + along
        rank = torch.rand(batch, grid.num_tokens, generator=generator, device=device)
        given = rank.scatter_add(1, asked.flatten(1), torch.ones_like(asked.flatten(1), dtype=rank.dtype)).argsort(1)
        return TargetBlocks(given=given[:, :free], asked=asked)
