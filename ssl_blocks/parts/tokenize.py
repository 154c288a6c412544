"""Tokenizers cut images into patches."""

from typing import Any, Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from ssl_blocks.bounds import Channels, Depth, Pixels, Whole
from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid, axis_names

Images = Float[Tensor, "b c *s"]
Sizes = Pixels | tuple[Pixels, ...]


@runtime_checkable
class Tokenizer(Protocol):
    """Cuts images into patches in raster order of its grid, and puts them together again.

    Attributes:
        grid: tokens of an image; it need not have as many axes as the image.
        patch: size of a patch along each axis.
        channels: of a patch, which is what an encoder takes; an image may have others.
    """

    grid: Grid
    patch: tuple[int, ...]
    channels: int

    def __call__(self, images: Shaped[Tensor, "b k *s"], /) -> Shaped[Tensor, "b n c *p"]:
        """Return patches ``[B, N, C, *patch]`` of images, such as ``[B, C, H, W]``."""
        ...

    def untokenize(self, patches: Shaped[Tensor, "b n c *p"], /) -> Shaped[Tensor, "b k *s"]:
        """Return images from patches ``[B, N, C, *patch]``."""
        ...


@runtime_checkable
class StoredTokenizer(Tokenizer, Protocol):
    """A tokenizer that exports can name, so that evaluation cuts images as pretraining did."""

    def describe(self) -> dict[str, Any]:
        """What ``rebuild`` needs, as plain values that JSON can hold."""
        ...

    @classmethod
    def rebuild(cls, arguments: dict[str, Any], /) -> "StoredTokenizer":
        """The same tokenizer, of what ``describe`` said; JSON makes lists of tuples."""
        ...


def pair(value: Sizes) -> tuple[int, int]:
    """Read one number as a square, two as (height, width)."""
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise ValueError(f"size {tuple(value)} must be one number, or two: height and width")
    return value[0], value[1]


def same_length(**sizes: Sizes) -> tuple[tuple[int, ...], ...]:
    """Read sizes of which each is one number for all axes or one for each; two axes where nothing says otherwise."""
    told = {name: len(size) for name, size in sizes.items() if not isinstance(size, int)}
    ndim = next(iter(told.values()), 2)
    for name, count in told.items():
        if count != ndim or not count:
            first = next(iter(told))
            raise ValueError(
                f"{name}={sizes[name]} must be one number, or one for each axis, as many as {first}={sizes[first]} has"
            )
    return tuple((size,) * ndim if isinstance(size, int) else tuple(size) for size in sizes.values())


def cut_cells(images: Tensor, cell: tuple[int, ...]) -> Tensor:
    """Cells ``[B, N, C, *cell]`` of images ``[B, C, *sizes]`` in raster order."""
    n, sides = len(cell), zip(images.shape[2:], cell, strict=True)
    # not by einops, whose patterns Dynamo would read anew wherever a step is compiled
    split = images.reshape(*images.shape[:2], *(part for size, side in sides for part in (size // side, side)))
    return split.permute(0, *range(2, 2 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2)).flatten(1, n)


@checked
class PatchTokenizer:
    """Cut images into equal patches; a patch of 1 pixel makes pixel tokens.

    Images have any number of axes: signals ``[B, C, L]``, pictures ``[B, C, H, W]``, volumes or video
    ``[B, C, D, H, W]``, whose patches are cubes or tubelets.

    ``crop`` removes a frame from every patch, so that neighbours share no edge that would give their place
    away (APL, where it is called K and counts the pixels removed in total from each side length). The offset
    is half of it, rounded half to even as torchvision's centre crop does: 0 for 1, 2 for 3 and for 5, 4 for 7.

    Args:
        image_size: pixels along each axis; one number means a square.
        patch_size: size of a grid cell in pixels along each axis; one number means equal sides.
        channels: colour channels of the images.
        crop: pixels removed from each patch in total along each axis. ``patch`` is what remains.

    Raises:
        ValueError: if the patch does not divide the image or has another number of axes, or the crop leaves no pixel
            of it.

    Examples:
        >>> import torch
        >>> tokenizer = PatchTokenizer(image_size=(32, 48), patch_size=8, channels=3)
        >>> patches = tokenizer(torch.zeros(2, 3, 32, 48))
        >>> patches.shape, str(tokenizer.grid)
        (torch.Size([2, 24, 3, 8, 8]), '4x6')
        >>> tokenizer.untokenize(patches).shape
        torch.Size([2, 3, 32, 48])
        >>> volumes = PatchTokenizer(image_size=(16, 32, 32), patch_size=(2, 8, 8), channels=1)
        >>> volumes(torch.zeros(2, 1, 16, 32, 32)).shape
        torch.Size([2, 128, 1, 2, 8, 8])
    """

    image_size: tuple[int, ...]

    def __init__(self, *, image_size: Sizes, patch_size: Sizes, channels: Channels = 3, crop: Whole = 0) -> None:
        self.image_size, cell = same_length(image_size=image_size, patch_size=patch_size)
        for side, length, size in zip(axis_names(len(cell)), self.image_size, cell, strict=True):
            if size < 1 or length < 1 or length % size:
                raise ValueError(
                    f"patch_size={patch_size} must divide image_size={image_size} "
                    f"({side} {length} is not a multiple of {size})"
                )
        if not 0 <= crop < min(cell):
            raise ValueError(f"crop={crop} must be at least 0 and smaller than patch_size={patch_size}")
        self.grid = Grid(*(length // size for length, size in zip(self.image_size, cell, strict=True)))
        self.cell, self.crop, self.channels = cell, crop, channels
        self.patch = tuple(size - crop for size in cell)
        self._offset, self._covered = round(crop / 2), self.image_size  # `from_grid` takes larger ones

    @classmethod
    def from_grid(cls, *, image_size: Sizes, grid: Sizes, channels: Channels = 3, crop: Whole = 0) -> "PatchTokenizer":
        """Cut images into so many cells; what the grid does not divide is left out at the far end of each axis (APL).

        Args:
            image_size: pixels along each axis; one number means a square.
            grid: cells along each axis; one number means as many along all. A cell's side is ``image_size // grid``.
            channels: colour channels of the images.
            crop: pixels removed from each patch in total along each axis.

        Raises:
            ValueError: if there are more cells than pixels, or the crop leaves no pixel of them.

        Examples:
            >>> tokenizer = PatchTokenizer.from_grid(image_size=96, grid=7, crop=1)  # cells of 13 pixels, 5 are left
            >>> tokenizer.grid, tokenizer.patch, tokenizer.image_size
            (Grid(7, 7), (12, 12), (96, 96))
        """
        size, counts = same_length(image_size=image_size, grid=grid)
        if min(counts) < 1 or any(count > length for count, length in zip(counts, size, strict=True)):
            raise ValueError(
                f"grid={grid} must be at least 1 and at most one cell per pixel of image_size={image_size}"
            )
        cell = tuple(length // count for length, count in zip(size, counts, strict=True))
        if not 0 <= crop < min(cell):
            raise ValueError(
                f"crop={crop} must be at least 0 and smaller than the cells of {'x'.join(map(str, cell))} pixels that "
                f"grid={grid} makes of image_size={image_size}"
            )
        covered = tuple(count * side for count, side in zip(counts, cell, strict=True))
        tokenizer = cls(image_size=covered, patch_size=cell, channels=channels, crop=crop)
        tokenizer.image_size = size
        return tokenizer

    def __call__(self, images: Shaped[Tensor, "b c *s"]) -> Shaped[Tensor, "b n c *p"]:
        """Cut images.

        Args:
            images: ``[B, C, *image_size]``, such as ``[B, C, H, W]``.

        Returns:
            Patches ``[B, N, C, *patch]`` in raster order.

        Raises:
            ValueError: if the images have another size or number of channels.
        """
        check_images(images, (self.channels, *self.image_size))
        patches = cut_cells(images[:, :, *tuple(slice(size) for size in self._covered)], self.cell)
        if self.crop:
            low = self._offset
            patches = patches[:, :, :, *tuple(slice(low, low + size) for size in self.patch)]
        return patches

    def describe(self) -> dict[str, Any]:
        """Sizes as ``from_grid`` takes them."""
        sizes = {"image_size": list(self.image_size), "grid": list(self.grid.sizes)}
        return {**sizes, "channels": self.channels, "crop": self.crop}

    @classmethod
    def rebuild(cls, arguments: dict[str, Any]) -> "PatchTokenizer":
        """The same tokenizer."""
        return cls.from_grid(**_with_tuples(arguments))

    def untokenize(self, patches: Shaped[Tensor, "b n c *p"]) -> Shaped[Tensor, "b c *s"]:
        """Put patches ``[B, N, C, *patch]`` together to images; pixels of no patch become 0."""
        if self.crop:
            patches = F.pad(patches, (self._offset, self.crop - self._offset) * len(self.patch))
        n, cells = len(self.cell), patches.reshape(len(patches), *self.grid.sizes, *patches.shape[2:])
        cells = cells.movedim(n + 1, 1)  # [B, C, *counts, *cell]
        paired = cells.permute(0, 1, *(axis for count in range(2, n + 2) for axis in (count, count + n)))
        covered = paired.reshape(*paired.shape[:2], *self._covered)
        left = [length - have for length, have in zip(self.image_size, covered.shape[2:], strict=True)]
        # padding counts axes from the last one
        return F.pad(covered, [n for rest in reversed(left) for n in (0, rest)]) if any(left) else covered


@checked
class ChannelTokenizer:
    """Cut every channel by itself: one token per channel and place, for multi-channel microscopy (ChannelViT, Sec. 3).

    Channels become the first axis of the grid, ``Grid(C, h, w)``, and patches have one channel: an encoder sees a
    volume of one channel, whose first axis is the image's channels, and its positions tell channels apart. With
    ``depth`` above 1 so many neighbouring channels share a token: tubelets of a grey video, or cubes of a volume, whose
    frames or slices come as channels.

    Args:
        image_size: pixels along each axis of a channel; one number means a square.
        patch_size: size of a patch in pixels along each of these axes; one number means equal sides.
        channels: channels of the images.
        depth: channels that share a token.

    Raises:
        ValueError: if the patch does not divide the image, or the depth the channels.

    Examples:
        >>> import torch
        >>> tokenizer = ChannelTokenizer(image_size=32, patch_size=8, channels=5)
        >>> str(tokenizer.grid), tokenizer.patch, tokenizer.channels
        ('5x4x4', (1, 8, 8), 1)
        >>> tokenizer(torch.zeros(2, 5, 32, 32)).shape
        torch.Size([2, 80, 1, 1, 8, 8])
    """

    channels = 1

    def __init__(self, *, image_size: Sizes, patch_size: Sizes, channels: Channels, depth: Depth = 1) -> None:
        size, patch = same_length(image_size=image_size, patch_size=patch_size)
        if depth < 1 or channels < 1 or channels % depth:
            raise ValueError(f"depth={depth} must divide channels={channels}")
        PatchTokenizer(image_size=image_size, patch_size=patch_size)  # its errors name what the caller gave
        self._volume = PatchTokenizer(image_size=(channels, *size), patch_size=(depth, *patch), channels=1)
        self.grid, self.patch, self.image_size = self._volume.grid, self._volume.patch, size

    def __call__(self, images: Shaped[Tensor, "b k *s"]) -> Shaped[Tensor, "b n 1 *p"]:
        """Cut images ``[B, C, *image_size]`` into patches ``[B, N, 1, depth, *patch_size]``, channel by channel.

        Raises:
            ValueError: if the images have another size or number of channels.
        """
        check_images(images, self._volume.image_size)
        return self._volume(images[:, None])

    def describe(self) -> dict[str, Any]:
        """The arguments that it was built with."""
        count, (depth, *patch) = self._volume.image_size[0], self.patch
        return {"image_size": list(self.image_size), "patch_size": patch, "channels": count, "depth": depth}

    @classmethod
    def rebuild(cls, arguments: dict[str, Any]) -> "ChannelTokenizer":
        """The same tokenizer."""
        return cls(**_with_tuples(arguments))

    def untokenize(self, patches: Shaped[Tensor, "b n 1 *p"]) -> Shaped[Tensor, "b k *s"]:
        """Put patches together to images ``[B, C, *image_size]``."""
        return self._volume.untokenize(patches)[:, 0]


def _with_tuples(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}


def check_images(images: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse images of another shape than (channels, size along each axis)."""
    if tuple(images.shape[1:]) != expected:
        wanted = ", ".join(map(str, expected))
        raise ValueError(f"images of shape {tuple(images.shape)} do not fit this tokenizer: expected [B, {wanted}]")
