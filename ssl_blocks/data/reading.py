"""From what a source found to splits: decoded, in the size and channels asked for, or to be decoded later."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset
from torchvision.transforms.v2 import functional as TF

from ssl_blocks.bounds import Pixels
from ssl_blocks.data.arrays import Range, range_of
from ssl_blocks.data.files import UnreadableImageError, read_extremes, read_shape
from ssl_blocks.data.items import Part, every, name_of
from ssl_blocks.data.layout import PassedOver
from ssl_blocks.data.protocol import Items
from ssl_blocks.data.resample import fit_images
from ssl_blocks.data.splits import Corrupt, FileSplit, ImageShape, ImageSplit, decode_files, shuffled_ranks
from ssl_blocks.data.streams import StreamImages

CHUNK = 1024  # images resized at a time
NUM_FOR_STATISTICS = 2000  # images of streamed data
Storage = Literal["auto", "memory", "stream"]
Size = Pixels | tuple[Pixels, Pixels]


@dataclass(frozen=True)
class Listed:
    """A split before it is read: images of 8 bits in memory, or what is still to be decoded."""

    items: Tensor | Items
    labels: Tensor | None

    def take(self, index: Tensor) -> "Listed":
        """Items and labels at these places."""
        items = self.items[index] if isinstance(self.items, Tensor) else Part(self.items, index)
        return Listed(items, None if self.labels is None else self.labels[index])


def hold_out(part: Listed, num_test: int, generator: torch.Generator) -> tuple[Listed, Listed]:
    """Split off a stratified share: of each class what is due to it, rounded up or down at random, but never all."""
    assert part.labels is not None
    _, rank = shuffled_ranks(part.labels, generator)
    counts = part.labels.bincount()
    share = (rank + torch.rand(len(counts), generator=generator)[part.labels]) / counts[part.labels]
    last = rank == counts[part.labels] - 1
    index = share.masked_fill(last, torch.inf).argsort(stable=True)
    num_test = min(num_test, len(index) - int(last.sum()))
    return part.take(index[num_test:].sort().values), part.take(index[:num_test].sort().values)


@dataclass(frozen=True)
class Found:
    """What a source holds: its parts, class names, what is to be told about it, and files that lead nowhere."""

    train: Listed
    test: Listed | None
    class_names: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    unread: tuple[Path, ...] = ()

    def told(self, passed: PassedOver | None = None) -> "Found":
        """The same with a remark on how much was found, and what was passed over."""
        count = len(self.train.items) + (0 if self.test is None else len(self.test.items))
        classes = f" in {len(self.class_names):,} class{'es' * (len(self.class_names) > 1)}" if self.class_names else ""
        beside = f"; passed over {passed}" if passed else ""
        return replace(self, remarks=(f"found {count:,} images{classes}{beside}",))


def as_pair(image_size: Size | None) -> tuple[int, int] | None:
    """Height and width; one number means a square."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


@dataclass(frozen=True)
class SplitReader:
    """Makes splits of parts; the arguments are those of `ssl_blocks.data.load`."""

    image_size: tuple[int, int] | None
    channels: int | None
    storage: Storage
    max_bytes: int
    corrupt: Corrupt
    value_range: Range | None = None

    def read(self, parts: Sequence[Listed]) -> list[ImageSplit | FileSplit]:
        """Make a split of every part."""
        if parts and isinstance(stream := parts[0].items, StreamImages):
            shape = self._first_shape(looked_at(stream))
            return [self._stream(parts[0], shape), *self.read(parts[1:])]
        count = sum(len(part.items) for part in parts)
        listed: list[Any] = [part.items for part in parts if not isinstance(part.items, Tensor)]
        if not listed:
            return [self._convert(part, count) for part in parts]
        shape = self._first_shape(ConcatDataset(listed))
        too_many = self._bytes(count, shape) > self.max_bytes and self.image_size is not None
        if self.storage == "stream" or (self.storage == "auto" and too_many):
            return [self._stream(part, shape) for part in parts]
        self._check_memory(count, shape)
        return self._decode(listed, [part.labels for part in parts], shape)

    def _decode(
        self, listed: list[Any], labels: list[Tensor | None], shape: ImageShape
    ) -> list[ImageSplit | FileSplit]:
        """Decode all parts together, which fills the pool of threads, and take them apart again."""
        images, readable = decode_files(
            ConcatDataset(listed),
            size=None if self.image_size is None else (shape.height, shape.width),
            channels=self.channels,
            corrupt=self.corrupt,
            value_range=self.value_range,
        )
        splits: list[ImageSplit | FileSplit] = []
        keeps = torch.split(readable, [len(files) for files in listed])
        for files, own_labels, keep in zip(listed, labels, keeps, strict=True):
            if not keep.any():
                raise UnreadableImageError(
                    f"corrupt='skip' must leave images in every split, but {name_of(files, 0)} and the "
                    f"{len(files) - 1} other files of its split are all unreadable"
                )
            mine, images = images.tensor_split([int(keep.sum())])
            skipped = tuple(Path(name_of(files, i)) for i in (~keep).nonzero()[:, 0].tolist())
            splits.append(ImageSplit(mine, None if own_labels is None else own_labels[keep], skipped))
        return splits

    def _first_shape(self, files: Items) -> ImageShape:
        error: UnreadableImageError | None = None
        for place in range(len(files)):
            try:
                channels, height, width = read_shape(files[place], channels=self.channels)
                return ImageShape(channels, *(self.image_size or (height, width)))
            except UnreadableImageError as unreadable:
                if self.corrupt == "error":
                    raise
                error = unreadable
        raise UnreadableImageError(f"corrupt='skip' must leave at least one image, but none can be read: {error}")

    def _stream(self, part: Listed, shape: ImageShape) -> FileSplit:
        if self.image_size is None:
            raise ValueError("storage='stream' needs image_size: images in files may be of any size")
        assert not isinstance(part.items, Tensor)
        size = (shape.height, shape.width)
        return FileSplit(part.items, part.labels, size, shape.channels, self.corrupt, self.value_range)

    def _convert(self, part: Listed, count: int) -> ImageSplit:
        images = part.items
        assert isinstance(images, Tensor)
        own, height, width = images.shape[1:]
        size = self.image_size or (height, width)
        self._check_memory(count, ImageShape(self.channels or own, *size))
        if self.channels not in (None, own):
            if (own, self.channels) not in ((1, 3), (3, 1)):
                raise ValueError(f"channels={self.channels} must be 1 or 3 for images of {own} channels")
            images = images.expand(-1, 3, -1, -1) if self.channels == 3 else TF.rgb_to_grayscale(images)
        if (height, width) != size:
            images = torch.cat([fit_images(images[i : i + CHUNK], size) for i in range(0, len(images), CHUNK)])
        return ImageSplit(images.contiguous(), part.labels)

    def _check_memory(self, count: int, shape: ImageShape) -> None:
        needed = self._bytes(count, shape)
        if needed > self.max_bytes:
            raise ValueError(
                f"max_bytes={self.max_bytes} ({self.max_bytes / 2**30:.3g} GiB) must hold the decoded images, but "
                f"{count} images of {'x'.join(map(str, shape))} need {needed} ({needed / 2**30:.3g} GiB): give "
                "storage='stream' and image_size for images in files, a smaller max_train, max_test or image_size, or "
                "a larger max_bytes (data.max_memory_gib in a recipe)"
            )

    def _bytes(self, count: int, shape: ImageShape) -> int:
        return count * shape.channels * shape.height * shape.width * (1 if self.value_range is None else 2)


def find_range(part: Listed, channels: int | None) -> tuple[Range, str] | None:
    """Range of values of images that do not have 8 bits, measured, and what to say about it; ``None`` for 8 bits.

    The first readable image tells the type; where it has 8 bits, others are not looked at.
    """
    if isinstance(part.items, Tensor):
        return None
    items = looked_at(part.items)

    def look(place: int) -> tuple[np.dtype[Any], Range | None] | None:
        try:
            return read_extremes(items[place], channels=channels)
        except UnreadableImageError:
            return None

    first = next((seen for seen in map(look, range(len(items))) if seen is not None), None)
    if first is None or first[0] == np.uint8:
        return None
    with ThreadPoolExecutor() as pool:
        seen = [one for one in pool.map(look, every(len(items), NUM_FOR_STATISTICS)) if one is not None]
    dtype, measured = first[0], [extremes for _, extremes in seen if extremes is not None]
    if not measured:
        return None
    low, high = range_of(measured, dtype)
    told = (
        f"pixels are {dtype}: {low:g} is black and {high:g} is white, by {len(measured):,} images; "
        f"data.value_range={low:g},{high:g} fixes it"
    )
    return (low, high), told


def looked_at(items: Items) -> Items:
    """What is looked at for statistics: of a stream the beginning, for it is read from there."""
    return items.first(NUM_FOR_STATISTICS) if isinstance(items, StreamImages) else items


def some_images(split: ImageSplit | FileSplit) -> Tensor:
    """Images for statistics: all that are in memory, or an even choice of those that are not."""
    if isinstance(split, ImageSplit):
        return split.images
    count = len(split)
    some = range(min(count, NUM_FOR_STATISTICS)) if split.is_stream else every(count, NUM_FOR_STATISTICS)
    return split.read(torch.tensor(some))
