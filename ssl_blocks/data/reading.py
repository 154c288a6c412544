"""From what a source found to splits: decoded, in the size and channels asked for, or to be decoded later."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ssl_blocks.data.files import UnreadableImageError, read_shape
from ssl_blocks.data.resample import fit_images
from ssl_blocks.data.splits import Corrupt, FileSplit, ImageShape, ImageSplit, decode_files

CHUNK = 1024  # images resized at a time
NUM_FOR_STATISTICS = 2000  # images of streamed data
Storage = Literal["auto", "memory", "stream"]


@dataclass(frozen=True)
class Listed:
    """A split before it is read: decoded images, or the files that hold them."""

    items: Tensor | list[Path]
    labels: Tensor | None

    def take(self, index: Tensor) -> "Listed":
        """Items and labels at these places."""
        items = self.items[index] if isinstance(self.items, Tensor) else [self.items[i] for i in index.tolist()]
        return Listed(items, None if self.labels is None else self.labels[index])


@dataclass(frozen=True)
class SplitReader:
    """Makes splits of parts; the arguments are those of `ssl_blocks.data.load`."""

    image_size: int | None
    channels: int | None
    storage: Storage
    max_bytes: int
    corrupt: Corrupt

    def read(self, parts: list[Listed]) -> list[ImageSplit | FileSplit]:
        """Make a split of every part."""
        count = sum(len(part.items) for part in parts)
        listed = [part.items for part in parts if isinstance(part.items, list)]
        if not listed:
            return [self._convert(part, count) for part in parts]
        shape = self._first_shape([file for files in listed for file in files])
        too_many = _bytes(count, shape) > self.max_bytes and self.image_size is not None
        if self.storage == "stream" or (self.storage == "auto" and too_many):
            return [self._stream(part, shape) for part in parts]
        self._check_memory(count, shape)
        return self._decode(listed, [part.labels for part in parts], shape)

    def _decode(
        self, listed: list[list[Path]], labels: list[Tensor | None], shape: ImageShape
    ) -> list[ImageSplit | FileSplit]:
        """Decode all parts together, which fills the pool of threads, and take them apart again."""
        images, bad = decode_files(
            [file for files in listed for file in files],
            size=None if self.image_size is None else (shape.height, shape.width),
            channels=self.channels,
            corrupt=self.corrupt,
        )
        splits: list[ImageSplit | FileSplit] = []
        start = 0
        for files, own_labels in zip(listed, labels, strict=True):
            gone = {i - start for i in bad if start <= i < start + len(files)}
            keep = torch.tensor([i for i in range(len(files)) if i not in gone], dtype=torch.int64)
            if not len(keep):
                raise UnreadableImageError(
                    f"corrupt='skip' must leave images in every split, but {files[0]} and the {len(files) - 1} other "
                    "files of its split are all unreadable"
                )
            mine, images = images[: len(keep)], images[len(keep) :]
            skipped = tuple(files[i] for i in sorted(gone))
            splits.append(ImageSplit(mine, None if own_labels is None else own_labels[keep], skipped))
            start += len(files)
        return splits

    def _first_shape(self, files: list[Path]) -> ImageShape:
        error: UnreadableImageError | None = None
        for file in files:
            try:
                channels, height, width = read_shape(file, channels=self.channels)
            except UnreadableImageError as unreadable:
                if self.corrupt == "error":
                    raise
                error = unreadable
                continue
            size = (height, width) if self.image_size is None else (self.image_size, self.image_size)
            return ImageShape(channels, *size)
        raise UnreadableImageError(f"corrupt='skip' must leave at least one image, but none can be read: {error}")

    def _stream(self, part: Listed, shape: ImageShape) -> FileSplit:
        if self.image_size is None:
            raise ValueError("storage='stream' needs image_size: images in files may be of any size")
        files = np.array([os.fsencode(path) for path in part.items])
        return FileSplit(files, part.labels, (shape.height, shape.width), shape.channels, self.corrupt)

    def _convert(self, part: Listed, count: int) -> ImageSplit:
        images = part.items
        assert isinstance(images, Tensor)
        own, height, width = images.shape[1:]
        size = (height, width) if self.image_size is None else (self.image_size, self.image_size)
        self._check_memory(count, ImageShape(self.channels or own, *size))
        if self.channels not in (None, own):
            if (own, self.channels) not in ((1, 3), (3, 1)):
                raise ValueError(f"channels={self.channels} must be 1 or 3 for images of {own} channels")
            images = images.expand(-1, 3, -1, -1) if self.channels == 3 else TF.rgb_to_grayscale(images)
        if (height, width) != size:
            images = torch.cat([fit_images(images[i : i + CHUNK], size) for i in range(0, len(images), CHUNK)])
        return ImageSplit(images.contiguous(), part.labels)

    def _check_memory(self, count: int, shape: ImageShape) -> None:
        needed = _bytes(count, shape)
        if needed > self.max_bytes:
            raise ValueError(
                f"max_bytes={self.max_bytes} ({self.max_bytes / 2**30:.3g} GiB) must hold the decoded images, but "
                f"{count} images of {'x'.join(map(str, shape))} need {needed} ({needed / 2**30:.3g} GiB): give "
                "storage='stream' and image_size for images in files, a smaller max_train, max_test or image_size, or "
                "a larger max_bytes (data.max_memory_gib in a recipe)"
            )


def _bytes(count: int, shape: ImageShape) -> int:
    return count * shape.channels * shape.height * shape.width


def some_images(split: ImageSplit | FileSplit) -> Tensor:
    """Images for statistics: all that are in memory, or an even choice of those that are not."""
    if isinstance(split, ImageSplit):
        return split.images
    return split.read(torch.linspace(0, len(split) - 1, min(NUM_FOR_STATISTICS, len(split))).long())
