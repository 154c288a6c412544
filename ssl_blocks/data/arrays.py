"""Pixels of any type and number of channels: what a file holds, and how it becomes whole numbers of 8 or 16 bits."""

import importlib.util
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import UInt
from numpy.typing import NDArray
from PIL import Image, ImageFile
from torch import Tensor

DEEPEST = 65535  # of 16 bits
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # as Pillow mixes grey

Range = tuple[float, float]


def to_levels(pixels: NDArray[Any], value_range: Range | None) -> UInt[Tensor, "c h w"]:
    """Pixels ``[H, W, C]`` as ``[C, H, W]`` uint8, or uint16 on a scale of values.

    Args:
        pixels: of any real type.
        value_range: the values that become 0 and 65535; values beyond become these. ``None``: 8 bits stay as they
            are, of 1 bit true becomes 255, and all else is refused.

    Raises:
        ValueError: if pixels are no finite real numbers, or do not have 8 bits and no range is given.

    Examples:
        >>> to_levels(np.array([[[-1000], [24], [3095]]], np.int16), (-1000.0, 3095.0)).flatten().tolist()
        [0, 16388, 65535]
    """
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"its pixels are {pixels.dtype}, not real numbers")
    if value_range is None:
        if pixels.dtype == np.bool_:
            pixels = pixels.astype(np.uint8) * np.uint8(255)
        if pixels.dtype != np.uint8:
            raise ValueError(
                f"its pixels are {pixels.dtype}, not uint8: data.value_range (value_range) must say which values are "
                "black and white"
            )
    elif not (pixels.dtype == np.uint16 and tuple(value_range) == (0, DEEPEST)):
        (low, high), wide = value_range, pixels.astype(np.float64)
        if not np.isfinite(wide).all():
            raise ValueError("some of its pixels are NaN or infinite")
        pixels = ((wide - low) * (DEEPEST / (high - low))).round().clip(0, DEEPEST).astype(np.uint16)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def check_range(value_range: Range | None) -> None:
    """Refuse a range that does not ascend."""
    if value_range is not None and not (np.isfinite(value_range).all() and value_range[0] < value_range[1]):
        raise ValueError(f"value_range={value_range} must be (lowest, highest), two finite numbers that ascend")


def range_of(extremes: list[Range], dtype: np.dtype[Any]) -> Range:
    """The range of images from their extremes: of unsigned types all values of the bits in use, else as measured.

    Examples:
        >>> range_of([(3.0, 3100.0), (0.0, 9.0)], np.dtype("uint16")), range_of([(-1000.0, 24.0)], np.dtype("int16"))
        ((0.0, 4095.0), (-1000.0, 24.0))
    """
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if dtype.kind == "u":
        return 0.0, float((1 << max(8, int(high).bit_length())) - 1)
    return (low, high) if low < high else (low, low + 1)


def with_channels(pixels: NDArray[Any], channels: int | None) -> NDArray[Any]:
    """Pixels ``[H, W, C]`` in the channels asked for: as they are, grey as RGB, or RGB as grey.

    Raises:
        ValueError: if they cannot be.
    """
    own = pixels.shape[2]
    if channels in (None, own):
        return pixels
    if (own, channels) == (1, 3):
        return pixels.repeat(3, axis=2)
    if (own, channels) == (3, 1):
        mixed: NDArray[Any] = pixels.astype(np.float32) @ LUMA
        return (mixed if pixels.dtype.kind == "f" else mixed.round().astype(pixels.dtype))[..., None]
    raise ValueError(f"it has {own} channels, expected channels={channels}")


def map_npy(file: Path) -> NDArray[Any]:
    """Map a ``.npy`` file of ``[H, W]`` or ``[H, W, C]``."""
    # mapped, so that a header that promises more than the file holds costs no memory; objects are never unpickled
    return _with_axis(np.lib.format.open_memmap(file, mode="r"))


def _with_axis(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.dtype.kind not in "buif" or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(f"it holds {pixels.dtype} {pixels.shape}, expected numbers [H, W] or [H, W, C]")
    return pixels[..., None] if pixels.ndim == 2 else pixels


def array_of(item: NDArray[Any] | Tensor) -> NDArray[Any]:
    """An image in memory as ``[H, W, C]``: an array is so already, or ``[H, W]``; a tensor is ``[C, H, W]``."""
    if isinstance(item, Tensor):
        item = item.detach().cpu()
        return _with_axis((item.permute(1, 2, 0) if item.ndim == 3 else item).numpy())
    return _with_axis(item)


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture has more than 8 bits a channel."""
    return picture.mode.startswith(("I", "F")) or _raw_mode(picture).endswith(("16B", "16L", "16N"))


def deep_array(picture: Image.Image, again: Image.Image) -> NDArray[Any]:
    """All bits of a picture that `is_deep` ``[H, W, C]``; ``again`` is the same file, opened once more.

    Of colours, Pillow keeps one byte of two, the higher one; told the other order of bytes, it keeps the lower one.
    """
    if picture.mode.startswith(("I", "F")):
        return np.array(picture)[..., None]
    raw = _raw_mode(picture)
    assert isinstance(again, ImageFile.ImageFile)
    tile = again.tile[0]
    other = raw[:-1] + ("L" if raw.endswith("B") else "B")
    args = (other, *tile.args[1:]) if isinstance(tile.args, tuple) else other
    again.tile = [part._replace(args=args) for part in again.tile]
    high, low = (np.asarray(one).astype(np.uint16) for one in (picture, again))
    return np.asarray(high << 8 | low)


def _raw_mode(picture: Image.Image) -> str:
    tile = getattr(picture, "tile", None)
    if not tile:
        return ""
    args = tile[0].args
    return str(args if isinstance(args, str) else args[0] if args else "")


def tiff_array(file: Path | IO[bytes]) -> NDArray[Any]:
    """A TIFF of any number of bands or pages ``[H, W, C]``, read by the package tifffile."""
    if importlib.util.find_spec("tifffile") is None:
        raise ValueError("it has bands or pages that Pillow cannot read as channels: install ssl_blocks[tiff]")
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        pixels: NDArray[Any] = series.asarray()
        axes = series.axes
    while pixels.ndim > 3 and 1 in pixels.shape:
        place = pixels.shape.index(1)
        pixels, axes = pixels.squeeze(place), axes[:place] + axes[place + 1 :]
    if pixels.ndim == 3 and not axes.endswith("S"):  # pages or planes come first
        pixels = pixels.transpose(1, 2, 0)
    return _with_axis(pixels)
