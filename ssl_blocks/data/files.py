"""Decoding one image: upright, opaque, in the channels and on the scale asked for, and never a bomb."""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssl_blocks.data.arrays import Range, array_of, deep_array, is_deep, map_npy, tiff_array, to_levels, with_channels
from ssl_blocks.data.resample import fit_images, mirror, resize

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow would start Ghostscript for an EPS
MODES = {1: "L", 3: "RGB"}
ORIENTATION = 0x0112  # EXIF
TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # what EXIF asks for, of [H, W, C]
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file that lies in an archive or a table, and what it is called."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


Raw = Path | Encoded | Image.Image | NDArray[Any] | Tensor
"""An image as a source holds it: a file, its bytes, or what was decoded already (arrays ``[H, W]`` or ``[H, W, C]``,
tensors ``[C, H, W]`` or ``[H, W]``, of any real type)."""


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


class _MistakeError(ValueError):
    """What is wrong with the wish, not with the file."""


def read_image(
    file: Raw, *, channels: int | None, size: tuple[int, int] | None = None, value_range: Range | None = None
) -> UInt[Tensor, "c h w"]:
    """Decode an image, and bring it to a size.

    Pictures are turned upright as EXIF says, palettes resolved, transparent parts put on white, and CMYK converted; of
    an animation the first frame is taken. Pictures of more than 8 bits, TIFFs of other than 1 or 3 bands and ``.npy``
    files (``[H, W]`` or ``[H, W, C]``) may be of any real type and any number of channels; pages of a TIFF of one size
    are channels where as many are asked for.

    Args:
        file: path, or another image as a source holds it.
        channels: 1 (grey) or 3 (RGB) for pictures of 8 bits, for others what they hold, too; ``None`` means 3 for
            pictures of 8 bits, and for others what they hold.
        size: height and width in pixels that the image is resized to cover before its centre is cropped; ``None``
            keeps it as it is. Of a JPEG at least twice as large only that much detail is decoded.
        value_range: the values that are black and white; ``None``: those of 8 bits, and other pixels are refused.

    Returns:
        ``[C, H, W]`` uint8; with a ``value_range`` uint16, of which 0 and 65535 are its ends.

    Raises:
        UnreadableImageError: if the file is gone, damaged, no image, too large to be harmless, or of another type or
            number of channels.
        ValueError: if a picture of 8 bits is to have other than 1 or 3 channels.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "white.png"
        >>> Image.new("L", (6, 4), 255).save(file)
        >>> read_image(file, channels=None).shape, read_image(file, channels=1, size=(2, 2)).shape
        (torch.Size([3, 4, 6]), torch.Size([1, 2, 2]))
    """
    with _naming(file), _opened(file, channels) as source:
        if isinstance(source, Image.Image):
            if size is not None:
                width, height = _upright_size(source)
                _draft(source, max(size[0] / height, size[1] / width))
            image = _to_tensor(_convert(_turn(source), MODES[channels or 3]), value_range)
        else:
            image = to_levels(with_channels(source, channels), value_range)
    return image if size is None else fit_images(image, size)


def read_crop(
    file: Raw,
    choose: BoxChooser,
    size: tuple[int, int],
    *,
    channels: int | None,
    value_range: Range | None = None,
) -> UInt[Tensor, "c p q"]:
    """Decode a part of an image, resized with antialiasing: ``[C, *size]`` uint8, or uint16 on a ``value_range``.

    The result is that of a crop and torchvision's ``resize``. Of a JPEG of which the part is at least twice as
    large as the result needs, only half, a quarter or an eighth of the detail is decoded (``Image.draft``).

    Args:
        file: path, or another image as a source holds it.
        choose: called with height and width of the upright image; returns the part.
        size: height and width of the result in pixels.
        channels: and errors: see `read_image`.
        value_range: see `read_image`.
    """
    with _naming(file), _opened(file, channels) as source:
        if isinstance(source, Image.Image):
            part, box = _cut(source, choose, size, MODES[channels or 3], value_range)
        else:
            box = choose(source.shape[0], source.shape[1])
            some = source[box.top : box.top + box.height, box.left : box.left + box.width]
            part = to_levels(with_channels(some, channels), value_range)
    crop = resize(part, size)
    return mirror(crop) if box.mirror else crop.contiguous()


def read_shape(file: Raw, *, channels: int | None) -> tuple[int, int, int]:
    """Find channels, height and width of the upright image; errors are those of `read_image`.

    Pictures of 8 bits are not decoded for it.
    """
    with _naming(file), _opened(file, channels) as source:
        if isinstance(source, Image.Image):
            width, height = _upright_size(source)
            return channels or 3, height, width
        own = source.shape[2] if channels is None else with_channels(source[:1, :1], channels).shape[2]
        return own, source.shape[0], source.shape[1]


def read_extremes(file: Raw, *, channels: int | None) -> tuple[np.dtype[Any], Range | None]:
    """The type of an image's pixels, and the smallest and largest of them; ``None`` for 8 bits."""
    with _naming(file), _opened(file, channels) as source:
        if isinstance(source, Image.Image) or source.dtype in (np.uint8, np.bool_):
            return np.dtype(np.uint8), None
        values = source[np.isfinite(source)] if source.dtype.kind == "f" else source
        return source.dtype, ((float(values.min()), float(values.max())) if values.size else None)


@contextmanager
def _naming(file: Raw) -> Iterator[None]:
    try:
        yield
    except (MemoryError, _MistakeError):  # not the file's fault
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no known image format" if unknown else (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableImageError(f"{_name(file)} must be a readable image: {reason}") from error


def _name(file: Raw) -> str:
    return str(file) if isinstance(file, (Path, Encoded)) else f"an image of type {type(file).__name__}"


@contextmanager
def _opened(file: Raw, channels: int | None) -> Iterator[Image.Image | NDArray[Any]]:
    """A picture of 8 bits, not decoded yet; or the pixels ``[H, W, C]`` of any other image."""
    if isinstance(file, (np.ndarray, Tensor)):
        yield array_of(file)
        return
    if isinstance(file, Image.Image):
        yield deep_array(file, file) if file.mode.startswith(("I", "F")) else _plain(file, file, channels)
        return
    if isinstance(file, Path) and file.suffix.lower() == ".npy":
        pixels = map_npy(file)
        _refuse_bomb(pixels.shape[1], pixels.shape[0])
        yield pixels
        return
    try:
        picture = Image.open(_stream(file), formats=FORMATS)
    except UnidentifiedImageError:
        if not _is_tiff(file):
            raise
        yield tiff_array(_stream(file))
        return
    with picture:
        _refuse_bomb(*picture.size)
        if picture.format == "TIFF" and _has_other_bands(picture, channels):
            yield tiff_array(_stream(file))
        elif is_deep(picture):
            with Image.open(_stream(file), formats=FORMATS) as again:
                pixels = deep_array(picture, again)
            turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
            yield pixels if turn is None else turn(pixels)
        else:
            yield _plain(picture, file, channels)


def _plain(picture: Image.Image, file: Raw, channels: int | None) -> Image.Image:
    if channels not in (None, *MODES):
        raise _MistakeError(f"channels={channels} must be 1 (grey) or 3 (RGB) for pictures such as {_name(file)}")
    return picture


def _stream(file: Path | Encoded) -> Path | io.BytesIO:
    return io.BytesIO(file.content) if isinstance(file, Encoded) else file


def _is_tiff(file: Path | Encoded) -> bool:
    if isinstance(file, Encoded):
        return file.content[:2] in (b"II", b"MM")
    with file.open("rb") as stream:
        return stream.read(2) in (b"II", b"MM")


def _has_other_bands(picture: Image.Image, channels: int | None) -> bool:
    """Whether a TIFF is to be read band by band: it has pages of one size, which are channels."""
    pages = getattr(picture, "n_frames", 1)
    if pages == 1:
        return channels not in (None, *MODES)
    size = picture.size
    picture.seek(1)
    alike = picture.size == size  # or a thumbnail
    picture.seek(0)
    if alike and channels is None:
        raise ValueError(f"it has {pages} pages: channels={pages} reads them as channels, 1 or 3 the first of them")
    return channels not in (None, *MODES) or (alike and channels == pages)


def _refuse_bomb(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"{width}x{height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS={limit}; it may be a bomb")


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    return (height, width) if picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)


def _draft(picture: Image.Image, scale: float) -> None:
    """Let a JPEG be halved while it is decoded, as long as no pixel of the result is made of less than one."""
    width, height = (max(1, math.ceil(side * scale)) for side in picture.size)
    picture.draft(None, (width, height))


def _turn(picture: Image.Image) -> Image.Image:
    # exif_transpose copies even where there is nothing to turn
    return picture if picture.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(picture)


def _cut(
    picture: Image.Image, choose: BoxChooser, size: tuple[int, int], mode: str, value_range: Range | None
) -> tuple[Tensor, Box]:
    """The part of a picture, of which no more detail is decoded than ``size`` needs."""
    width, height = _upright_size(picture)
    box = choose(height, width)
    _draft(picture, max(size[0] / box.height, size[1] / box.width))
    upright = _turn(picture)
    x, y = upright.size[0] / width, upright.size[1] / height
    edges = (box.left * x, box.top * y, (box.left + box.width) * x, (box.top + box.height) * y)
    left, top, right, bottom = (math.floor(edge + 0.5) for edge in edges)
    return _to_tensor(_convert(upright.crop((left, top, right, bottom)), mode), value_range), box


def _convert(picture: Image.Image, mode: str) -> Image.Image:
    if picture.has_transparency_data:
        colors = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colors.size, "white"), colors)
    return picture.convert(mode)


def _to_tensor(picture: Image.Image, value_range: Range | None) -> UInt[Tensor, "c h w"]:
    pixels = np.array(picture)
    if value_range is not None:
        return to_levels(pixels[..., None] if pixels.ndim == 2 else pixels, value_range)
    # channels last in memory: torch resizes such images with all of a vector unit
    image = torch.from_numpy(pixels)
    return image[None] if image.ndim == 2 else image.permute(2, 0, 1)
