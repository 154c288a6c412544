"""Several blocks of an image that are predicted one by one, and may overlap, from what none of them covers."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.randomness import check_generator
from ssl_blocks.values import Grid


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

    def __call__(
        self, images: Float[Tensor, "b c *s"], grid: Grid, *, generator: torch.Generator | None = None
    ) -> TargetBlocks:
        """Draw for every image; the arguments are those of a partitioner."""
        ...


class RectangleSampler:
    """Draw rectangles of one size, and give what lies outside all of them (I-JEPA, Sec. 3).

    As many tokens are given as are left where no two rectangles overlap, so that shapes are the same in every draw and
    a compiled objective is one graph. Where they do overlap, the tokens in excess are neither given nor predicted, as
    I-JEPA leaves out what exceeds the smallest context of a batch. I-JEPA draws the size for every batch.

    Args:
        count: rectangles of an image.
        size: their height and width in tokens.

    Raises:
        ValueError: if a number is below 1, or (when called) rectangles do not fit the grid or leave nothing to give.

    Examples:
        >>> blocks = RectangleSampler(count=4, size=(3, 3))(torch.rand(2, 3, 32, 32), Grid(8, 8))
        >>> blocks.given.shape, blocks.asked.shape
        (torch.Size([2, 28]), torch.Size([2, 4, 9]))
    """

    def __init__(self, *, count: int = 4, size: tuple[int, int]) -> None:
        if count < 1 or min(size) < 1:
            raise ValueError(f"count={count} and size={size} must be at least 1")
        self.count, self.size = count, size

    def __call__(
        self, images: Float[Tensor, "b c *s"], grid: Grid, *, generator: torch.Generator | None = None
    ) -> TargetBlocks:
        """Draw the rectangles anew for every image."""
        check_generator(generator, images.device)
        (height, width), device, batch = self.size, images.device, len(images)
        free = grid.num_tokens - self.count * height * width
        if height > grid.height or width > grid.width or free < 1:
            raise ValueError(f"count={self.count} rectangles of size={self.size} must leave tokens of the {grid} grid")
        chance = torch.rand(2, batch, self.count, 1, 1, generator=generator, device=device)
        top = (chance[0] * (grid.height - height + 1)).long() + torch.arange(height, device=device)[:, None]
        left = (chance[1] * (grid.width - width + 1)).long() + torch.arange(width, device=device)
        asked = (top * grid.width + left).flatten(2)
        rank = torch.rand(batch, grid.num_tokens, generator=generator, device=device)
        given = rank.scatter_add(1, asked.flatten(1), torch.ones_like(asked.flatten(1), dtype=rank.dtype)).argsort(1)
        return TargetBlocks(given=given[:, :free], asked=asked)
