"""Decoding one image file: upright, opaque, in the channels asked for, and never a bomb."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ssl_blocks.data.resample import fit_images

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow would start Ghostscript for an EPS
MODES = {1: "L", 3: "RGB"}
ORIENTATION = 0x0112  # EXIF


class UnreadableImageError(ValueError):
    """A file that should hold an image and does not; the message is one line that names it."""


class Box(NamedTuple):
    """A part of an image in pixels, and whether it is to be mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    mirror: bool = False


BoxChooser = Callable[[int, int], Box]  # of height and width


def read_image(file: Path, *, channels: int | None, size: tuple[int, int] | None = None) -> UInt8[Tensor, "c h w"]:
    """Decode an image, and bring it to a size.

    Pictures are turned upright as EXIF says, palettes resolved, transparent parts put on white, CMYK and 16-bit
    images converted; of an animation the first frame is taken. A ``.npy`` file holds ``[H, W]`` or ``[H, W, C]``
    uint8 with any number of channels.

    Args:
        file: path.
        channels: 1 (grey) or 3 (RGB) for pictures; ``None`` means 3, and for ``.npy`` files what they hold.
        size: height and width in pixels that the image is resized to cover before its centre is cropped; ``None``
            keeps it as it is. Of a JPEG at least twice as large only that much detail is decoded.

    Returns:
        ``[C, H, W]`` uint8.

    Raises:
        UnreadableImageError: if the file is gone, damaged, no image, too large to be harmless, or, for ``.npy``,
            of another dtype or number of channels.
        ValueError: if a picture is to have other than 1 or 3 channels.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "white.png"
        >>> Image.new("L", (6, 4), 255).save(file)
        >>> read_image(file, channels=None).shape, read_image(file, channels=1, size=(2, 2)).shape
        (torch.Size([3, 4, 6]), torch.Size([1, 2, 2]))
    """
    mode = _mode(file, channels)
    with _naming(file):
        if mode is None:
            image = _read_array(file, channels)
        else:
            with _open(file) as picture:
                if size is not None:
                    width, height = _upright_size(picture)
                    _draft(picture, max(size[0] / height, size[1] / width))
                image = _to_tensor(_convert(_turn(picture), mode))
    return image if size is None else fit_images(image, size)


def read_crop(file: Path, choose: BoxChooser, size: tuple[int, int], *, channels: int | None) -> UInt8[Tensor, "c p q"]:
    """Decode a part of an image, resized with antialiasing: ``[C, *size]`` uint8.

    The result is that of a crop and torchvision's ``resize``. Of a JPEG of which the part is at least twice as
    large as the result needs, only half, a quarter or an eighth of the detail is decoded (``Image.draft``).

    Args:
        file: path.
        choose: called with height and width of the upright image; returns the part.
        size: height and width of the result in pixels.
        channels: and errors: see `read_image`.
    """
    mode = _mode(file, channels)
    with _naming(file):
        if mode is None:
            array = _read_array(file, channels)
            box = choose(array.shape[1], array.shape[2])
            part = array[:, box.top : box.top + box.height, box.left : box.left + box.width]
        else:
            with _open(file) as picture:
                part, box = _cut(picture, choose, size, mode)
    crop: Tensor = TF.resize(part, list(size), antialias=True)
    return crop.flip(-1) if box.mirror else crop.contiguous()


def read_shape(file: Path, *, channels: int | None) -> tuple[int, int, int]:
    """Find channels, height and width of the upright image without decoding it; errors are those of `read_image`."""
    mode = _mode(file, channels)
    with _naming(file):
        if mode is None:
            height, width, own = _map_array(file, channels).shape
            return own, height, width
        with _open(file) as picture:
            width, height = _upright_size(picture)
            return channels or 3, height, width


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:  # not the file's fault
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no known image format" if unknown else (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableImageError(f"{file} must be a readable image: {reason}") from error


def _mode(file: Path, channels: int | None) -> str | None:
    """Pillow's mode; ``None`` for a file that is none of Pillow's."""
    if file.suffix.lower() == ".npy":
        return None
    if channels not in (None, *MODES):
        raise ValueError(f"channels={channels} must be 1 (grey) or 3 (RGB) for pictures such as {file}")
    return MODES[channels or 3]


def _open(file: Path) -> Image.Image:
    picture = Image.open(file, formats=FORMATS)
    try:
        _refuse_bomb(*picture.size)
    except ValueError:
        picture.close()
        raise
    return picture


def _refuse_bomb(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"{width}x{height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS={limit}; it may be a bomb")


def _is_lying(picture: Image.Image) -> bool:
    return picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    return (height, width) if _is_lying(picture) else (width, height)


def _draft(picture: Image.Image, scale: float) -> None:
    """Let a JPEG be halved while it is decoded, as long as no pixel of the result is made of less than one."""
    width, height = (max(1, math.ceil(side * scale)) for side in picture.size)
    picture.draft(None, (width, height))


def _turn(picture: Image.Image) -> Image.Image:
    # exif_transpose copies even where there is nothing to turn
    return picture if picture.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(picture)


def _cut(picture: Image.Image, choose: BoxChooser, size: tuple[int, int], mode: str) -> tuple[Tensor, Box]:
    """The part of a picture, of which no more detail is decoded than ``size`` needs."""
    width, height = _upright_size(picture)
    box = choose(height, width)
    _draft(picture, max(size[0] / box.height, size[1] / box.width))
    upright = _turn(picture)
    x, y = upright.size[0] / width, upright.size[1] / height
    edges = (box.left * x, box.top * y, (box.left + box.width) * x, (box.top + box.height) * y)
    left, top, right, bottom = (math.floor(edge + 0.5) for edge in edges)
    return _to_tensor(_convert(upright.crop((left, top, right, bottom)), mode)), box


def _convert(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode == "F" or (picture.mode == "I" and np.asarray(picture).max() >= 1 << 16):
        raise ValueError(f"its pixels (mode {picture.mode}) have no 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16 bits: Pillow's conversion would saturate
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        colors = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colors.size, "white"), colors)
    return picture.convert(mode)


def _to_tensor(picture: Image.Image) -> UInt8[Tensor, "c h w"]:
    # channels last in memory: torch resizes such images with all of a vector unit
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _read_array(file: Path, channels: int | None) -> UInt8[Tensor, "c h w"]:
    return torch.from_numpy(_map_array(file, channels).transpose(2, 0, 1).copy())


def _map_array(file: Path, channels: int | None) -> NDArray[np.uint8]:
    # mapped, so that a header that promises more than the file holds costs no memory; objects are never unpickled
    pixels: NDArray[Any] = np.lib.format.open_memmap(file, mode="r")
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(f"it holds {pixels.dtype} {pixels.shape}, expected uint8 [H, W] or [H, W, C]")
    _refuse_bomb(pixels.shape[1], pixels.shape[0])
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if channels not in (None, pixels.shape[2]):
        raise ValueError(f"it has {pixels.shape[2]} channels, expected channels={channels}")
    return pixels
