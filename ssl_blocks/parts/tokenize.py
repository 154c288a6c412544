"""Tokenizers cut images into patches."""

from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Shaped
from torch import Tensor

from ssl_blocks.values import Grid


@runtime_checkable
class Tokenizer(Protocol):
    """Cuts images into patches in raster order, and puts them together again."""

    grid: Grid
    patch: tuple[int, int]
    channels: int

    def __call__(self, images: Shaped[Tensor, "b c h w"], /) -> Shaped[Tensor, "b n c p q"]:
        """Return patches ``[B, N, C, p, q]`` of images ``[B, C, H, W]``."""
        ...

    def untokenize(self, patches: Shaped[Tensor, "b n c p q"], /) -> Shaped[Tensor, "b c h w"]:
        """Return images ``[B, C, H, W]`` from patches ``[B, N, C, p, q]``."""
        ...


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Read one number as a square, two as (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class PatchTokenizer:
    """Cut images into equal patches; a patch of 1 pixel makes pixel tokens.

    ``crop`` removes a frame from every patch, so that neighbours share no edge that would give their place
    away (APL, where it is called K and counts the pixels removed in total from each side length). The offset
    is half of it, rounded half to even as torchvision's centre crop does: 0 for 1, 2 for 3 and for 5, 4 for 7.

    Args:
        image_size: height and width in pixels; one number means a square.
        patch_size: height and width of a grid cell in pixels; one number means a square.
        channels: colour channels of the images.
        crop: pixels removed from each patch's height and width in total. ``patch`` is what remains.

    Raises:
        ValueError: if the patch does not divide the image, or the crop leaves no pixel of it.

    Examples:
        >>> import torch
        >>> tokenizer = PatchTokenizer(image_size=(32, 48), patch_size=8, channels=3)
        >>> patches = tokenizer(torch.zeros(2, 3, 32, 48))
        >>> patches.shape, str(tokenizer.grid)
        (torch.Size([2, 24, 3, 8, 8]), '4x6')
        >>> tokenizer.untokenize(patches).shape
        torch.Size([2, 3, 32, 48])
    """

    image_size: tuple[int, int]

    def __init__(
        self, *, image_size: int | tuple[int, int], patch_size: int | tuple[int, int], channels: int = 3, crop: int = 0
    ) -> None:
        self.image_size, cell = pair(image_size), pair(patch_size)
        for side, length, size in zip(("height", "width"), self.image_size, cell, strict=True):
            if size < 1 or length < 1 or length % size:
                raise ValueError(
                    f"patch_size={patch_size} must divide image_size={image_size} "
                    f"({side} {length} is not a multiple of {size})"
                )
        if not 0 <= crop < min(cell):
            raise ValueError(f"crop={crop} must be at least 0 and smaller than patch_size={patch_size}")
        if channels < 1:
            raise ValueError(f"channels={channels} must be at least 1")
        self.grid = Grid(self.image_size[0] // cell[0], self.image_size[1] // cell[1])
        self.cell, self.crop, self.channels = cell, crop, channels
        self.patch = (cell[0] - crop, cell[1] - crop)
        self._offset = round(crop / 2)

    @classmethod
    def from_grid(
        cls, *, image_size: int | tuple[int, int], grid: int | tuple[int, int], channels: int = 3, crop: int = 0
    ) -> "PatchTokenizer":
        """Cut images into so many cells; what the grid does not divide is left out, right and bottom (APL).

        Args:
            image_size: height and width in pixels; one number means a square.
            grid: cells in height and width; one number means a square. A cell's side is ``image_size // grid``.
            channels: colour channels of the images.
            crop: pixels removed from each patch's height and width in total.

        Raises:
            ValueError: if there are more cells than pixels, or the crop leaves no pixel of them.

        Examples:
            >>> tokenizer = PatchTokenizer.from_grid(image_size=96, grid=7, crop=1)  # cells of 13 pixels, 5 are left
            >>> tokenizer.grid, tokenizer.patch, tokenizer.image_size
            (Grid(height=7, width=7), (12, 12), (96, 96))
        """
        size, counts = pair(image_size), pair(grid)
        if min(counts) < 1 or any(count > length for count, length in zip(counts, size, strict=True)):
            raise ValueError(
                f"grid={grid} must be at least 1 and at most one cell per pixel of image_size={image_size}"
            )
        cell = (size[0] // counts[0], size[1] // counts[1])
        if not 0 <= crop < min(cell):
            raise ValueError(
                f"crop={crop} must be at least 0 and smaller than the cells of {cell[0]}x{cell[1]} pixels that "
                f"grid={grid} makes of image_size={image_size}"
            )
        covered = (counts[0] * cell[0], counts[1] * cell[1])
        tokenizer = cls(image_size=covered, patch_size=cell, channels=channels, crop=crop)
        tokenizer.image_size = size
        return tokenizer

    def __call__(self, images: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b n c p q"]:
        """Cut images.

        Args:
            images: ``[B, C, H, W]``.

        Returns:
            Patches ``[B, N, C, p, q]`` in raster order.

        Raises:
            ValueError: if the images have another size or number of channels.
        """
        expected = (self.channels, *self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images of shape {tuple(images.shape)} do not fit this tokenizer: expected [B, "
                + ", ".join(map(str, expected))
                + "]"
            )
        height, width = self.grid.height * self.cell[0], self.grid.width * self.cell[1]
        covered = images[..., :height, :width]
        patches = rearrange(covered, "b c (h p) (w q) -> b (h w) c p q", h=self.grid.height, w=self.grid.width)
        if self.crop:
            low = self._offset
            patches = patches[..., low : low + self.patch[0], low : low + self.patch[1]]
        return patches

    def untokenize(self, patches: Shaped[Tensor, "b n c p q"]) -> Shaped[Tensor, "b c h w"]:
        """Put patches ``[B, N, C, p, q]`` together to images ``[B, C, H, W]``; pixels of no patch become 0."""
        if self.crop:
            low, high = self._offset, self.crop - self._offset
            patches = F.pad(patches, (low, high, low, high))
        covered = rearrange(patches, "b (h w) c p q -> b c (h p) (w q)", h=self.grid.height, w=self.grid.width)
        below, right = self.image_size[0] - covered.shape[-2], self.image_size[1] - covered.shape[-1]
        return F.pad(covered, (0, right, 0, below)) if below or right else covered
