"""Images in memory, images in files, and data sets made of them."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int, UInt
from torch import Tensor

from ssl_blocks.bounds import Channels, Pixels, Positive
from ssl_blocks.data.arrays import Range
from ssl_blocks.data.augment import HIGHEST
from ssl_blocks.data.files import BoxChooser, Raw, UnreadableImageError, read_crop, read_image
from ssl_blocks.data.items import Part, name_of
from ssl_blocks.data.protocol import Items
from ssl_blocks.data.streams import StreamImages
from ssl_blocks.doors import checked

FILES_PER_JOB = 64
Corrupt = Literal["error", "skip"]


class ImageShape(NamedTuple):
    """Channels, height and width of the images that training sees."""

    channels: int
    height: int
    width: int


@checked
@dataclass(frozen=True)
class ImageSplit:
    """Images in memory, and their labels where there are any.

    Args:
        images: ``[N, C, H, W]`` uint8, or uint16 for images of more than 8 bits.
        labels: ``[N]`` int64 class indices, -1 for an image without one; or ``None``.
        skipped: files that were left out because they could not be read.

    Raises:
        TypeError: if the images are of another type.
        ValueError: if they are not ``[N, C, H, W]``, or the labels are not one per image.
    """

    images: UInt[Tensor, "n c h w"]
    labels: Int[Tensor, " n"] | None
    skipped: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype not in HIGHEST:
            raise TypeError(f"images of {self.images.dtype} must be uint8, 0..255, or uint16, 0..65535")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> ImageShape:
        """Shape of one image."""
        return ImageShape(*self.images.shape[1:])

    def read(self, index: Int[Tensor, " k"]) -> UInt[Tensor, "k c h w"]:
        """Images at these places."""
        return self.images[index]

    def take(self, index: Int[Tensor, " k"]) -> "ImageSplit":
        """Images and labels at these places."""
        return ImageSplit(self.images[index], None if self.labels is None else self.labels[index])


@checked
@dataclass(frozen=True, eq=False)
class FileSplit:
    """Images in files or of a stream, decoded anew whenever they are asked for.

    Args:
        source: images by index: paths, or what else a `Source` holds.
        labels: ``[N]`` int64 class indices, -1 for an image without one; or ``None``.
        size: height and width of what is read, in pixels.
        channels: of what is read.
        corrupt: ``"error"``, or ``"skip"``: the next readable file takes the place of one that is not.
        value_range: the values that are black and white; ``None``: 8 bits.
    """

    source: Items
    labels: Int[Tensor, " n"] | None
    size: tuple[Pixels, Pixels]
    channels: Channels
    corrupt: Corrupt = "error"
    value_range: Range | None = None
    unreadable: Tensor = field(init=False)

    def __post_init__(self) -> None:
        flags = torch.zeros(len(self.source), dtype=torch.bool)
        # shared, so that the main process knows what its workers met
        object.__setattr__(self, "unreadable", flags.share_memory_())  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def shape(self) -> ImageShape:
        """Shape of one image."""
        return ImageShape(self.channels, *self.size)

    @property
    def is_stream(self) -> bool:
        """Whether images are read one after the other, for they have no index."""
        return isinstance(self.source, StreamImages)

    @property
    def skipped(self) -> tuple[Path, ...]:
        """Files met so far that could not be read."""
        places: list[int] = self.unreadable.nonzero()[:, 0].tolist()
        return tuple(Path(f"image {i}" if self.is_stream else name_of(self.source, i)) for i in places)

    def crop(self, index: int, box_of: BoxChooser) -> UInt[Tensor, "c h w"]:
        """Decode a part of an image, resized to ``size``; with ``corrupt="skip"``, of the next one that is readable."""
        for _ in range(len(self)):
            try:
                return self.crop_of(self.source[index], box_of)
            except UnreadableImageError:
                if self.corrupt == "error":
                    raise
                self.unreadable[index] = True
                index = (index + 1) % len(self)
        raise UnreadableImageError("corrupt='skip' must leave at least one image, but none can be read")

    def crop_of(self, raw: Raw, box_of: BoxChooser) -> UInt[Tensor, "c h w"]:
        """Decode a part of an image that the source gave, resized to ``size``."""
        return read_crop(raw, box_of, self.size, channels=self.channels, value_range=self.value_range)

    def read(self, index: Int[Tensor, " k"]) -> UInt[Tensor, "m c h w"]:
        """Decode images, resized and cropped around their centres; fewer where unreadable ones are skipped."""
        return self.take(index).images

    def take(self, index: Int[Tensor, " k"]) -> ImageSplit:
        """Decode images and keep their labels; unreadable ones are left out, or an error."""
        images, readable = decode_files(
            self.source.pick(index.tolist()) if isinstance(self.source, StreamImages) else Part(self.source, index),
            size=self.size,
            channels=self.channels,
            corrupt=self.corrupt,
            value_range=self.value_range,
        )
        self.unreadable[index[~readable]] = True
        return ImageSplit(images, None if self.labels is None else self.labels[index[readable]])


@checked
@dataclass(frozen=True)
class ImageData:
    """A data set: its splits, class names, and per-channel mean and std of train on the 0..1 scale.

    Args:
        name: of the data.
        train: images to train on.
        test: images to test on, if there are any.
        class_names: by label.
        mean: per channel.
        std: per channel.
        value_range: which values of the source are 0 and 1 on that scale; ``None``: those of 8 bits.
        remarks: what was found, in words.
        unread: files that were found, and could not be read.
        fingerprint: of the training images: names and sizes of their files, or what they look like; ``None``: unknown.
    """

    name: str
    train: ImageSplit | FileSplit
    test: ImageSplit | FileSplit | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    value_range: Range | None = None
    remarks: tuple[str, ...] = ()
    unread: tuple[Path, ...] = ()
    fingerprint: str | None = None

    @property
    def shape(self) -> ImageShape:
        """Shape of one image."""
        return self.train.shape

    @property
    def is_streamed(self) -> bool:
        """Whether images are decoded whenever they are asked for."""
        return isinstance(self.train, FileSplit)

    @property
    def skipped(self) -> tuple[Path, ...]:
        """Files met so far that could not be read, and were passed over."""
        return self.unread + self.train.skipped + (() if self.test is None else self.test.skipped)

    @classmethod
    def stand_in(cls, shape: ImageShape, *, num_train: int = 64) -> "ImageData":
        """Noise without labels in place of images of a shape: for dry runs and tests.

        Args:
            shape: of the images.
            num_train: how many there are.

        Examples:
            >>> ImageData.stand_in(ImageShape(3, 8, 8)).train.images.shape
            torch.Size([64, 3, 8, 8])
        """
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (num_train, *shape), dtype=torch.uint8, generator=generator, device="cpu")
        mean, std = (0.5,) * shape.channels, (0.25,) * shape.channels
        return cls("noise", ImageSplit(images, None), None, (), mean, std)

    def sample(self, num_train: int | None = None, num_test: int | None = None) -> "ImageData":
        """A part of the data in memory, drawn class by class and always the same; without unlabelled images.

        Args:
            num_train: most images of train; ``None`` means all.
            num_test: most images of test; ``None`` means all.
        """
        train, test = _sample(self.train, num_train), None if self.test is None else _sample(self.test, num_test)
        return replace(self, train=train, test=test)


def _sample(split: ImageSplit | FileSplit, count: int | None) -> ImageSplit:
    if isinstance(split, FileSplit) and split.is_stream:
        return split.take(torch.arange(len(split) if count is None else min(count, len(split))))
    labels = torch.zeros(len(split), dtype=torch.int64) if split.labels is None else split.labels
    known = (labels >= 0).nonzero()[:, 0]
    if isinstance(split, ImageSplit) and len(known) == len(split) and (count is None or count >= len(split)):
        return split
    return split.take(known[class_by_class(labels[known], count, torch.Generator().manual_seed(0))])


def class_by_class(labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
    """At most so many places, of each class the same number as far as possible, drawn and in ascending order."""
    order, rank = shuffled_ranks(labels, generator)
    return order[rank[order].argsort(stable=True)][:count].sort().values


def shuffled_ranks(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random order of all items, and every item's place in a random order of its class."""
    order = torch.randperm(len(labels), generator=generator)
    by_class = order[labels[order].argsort(stable=True)]
    counts = labels.bincount()
    rank = torch.empty_like(order)
    rank[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return order, rank


def decode_files(
    files: Items,
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    corrupt: Corrupt,
    value_range: Range | None = None,
) -> tuple[UInt[Tensor, "n c h w"], Bool[Tensor, " m"]]:
    """Decode image files in a pool of threads.

    Args:
        files: at least one image.
        size: height and width in pixels to which images are resized and cropped; ``None`` keeps them as they are,
            and then all must have one size.
        channels: see `ssl_blocks.data.files.read_image`.
        corrupt: whether an unreadable file is an error or left out.
        value_range: see `ssl_blocks.data.files.read_image`.

    Returns:
        The images that could be read, and of all whether they could.
    """

    def decode(place: int) -> Tensor | UnreadableImageError:
        try:
            return read_image(files[place], channels=channels, size=size, value_range=value_range)
        except UnreadableImageError as error:
            return error

    def decode_some(begin: int) -> list[Tensor | UnreadableImageError]:
        return [decode(place) for place in range(begin, min(begin + FILES_PER_JOB, len(files)))]

    images, first, error = torch.empty(0), 0, None
    readable = torch.ones(len(files), dtype=torch.bool)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        found = chain.from_iterable(pool.map(decode_some, range(0, len(files), FILES_PER_JOB)))
        for i, image in enumerate(found):
            if not isinstance(image, Tensor):
                if corrupt == "error":
                    raise image
                readable[i], error = False, image
                continue
            if not len(images):
                images, first = torch.empty(len(files), *image.shape, dtype=image.dtype), i
            if image.shape != images.shape[1:]:
                sizes = ("x".join(map(str, shape)) for shape in (images[0].shape, image.shape))
                own, other = (f"{name_of(files, k)} is {size}" for k, size in zip((first, i), sizes, strict=True))
                raise ValueError(
                    f"image_size=None must come with images of one shape, but {own} and {other} "
                    "(channels x height x width): give image_size"
                )
            images[i] = image
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, the rest need not be decoded
    if not readable.any():
        raise UnreadableImageError(f"corrupt='skip' must leave at least one image, but none can be read: {error}")
    return images if readable.all() else images[readable], readable
