"""Images one batch after the other, each with its name: what is in memory at a time is a few batches."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt
from torch import Tensor

from ssl_blocks.data.arrays import Range, check_range
from ssl_blocks.data.files import Encoded, Raw, UnreadableImageError, read_extremes, read_image
from ssl_blocks.data.reading import Found, Listed, find_range

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Row:
    """Where an image comes from.

    Args:
        file: its path, or its number in a source without files.
        split: ``train`` or ``test``; empty where there is but one.
        label: name of its class, or its index; empty where it has none.
    """

    file: str
    split: str
    label: str


@dataclass(frozen=True)
class Batch:
    """Images ``[B, C, H, W]`` of one size, in 8 or 16 bits, and where each comes from."""

    images: UInt[Tensor, "b c h w"]
    rows: tuple[Row, ...]
    raw: tuple[Raw, ...]


class ImageStream:
    """The images of all parts of a source, in order; the next batch is decoded while one is being used.

    Args:
        found: what a source holds.
        size: height and width in pixels that images are resized to cover before the centre is cropped; ``None``: all
            have one size.
        channels: of what is read.
        batch_size: images at a time; at least 1.
        corrupt: what to do about an image that cannot be read; those left out are ``skipped``.
        value_range: the values that are black and white; ``None``: those of 8 bits.
    """

    def __init__(
        self,
        found: Found,
        *,
        size: tuple[int, int] | None,
        channels: int,
        batch_size: int,
        corrupt: Literal["error", "skip"] = "error",
        value_range: Range | None = None,
    ) -> None:
        check_range(value_range)
        self.parts = [found.train] + ([] if found.test is None else [found.test])
        self.class_names, self.batch_size = found.class_names, batch_size
        self.size, self.channels, self.corrupt, self.value_range = size, channels, corrupt, value_range
        self.skipped: list[str] = []

    def __len__(self) -> int:
        """Images, those that cannot be read included."""
        return sum(len(part.items) for part in self.parts)

    def __iter__(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor() as decoders:
            starts = [(n, at) for n, part in enumerate(self.parts) for at in range(0, len(part.items), self.batch_size)]
            coming = (ahead.submit(self._read, number, start, decoders) for number, start in starts)
            pending = next(coming, None)
            while pending is not None:
                current, pending = pending, next(coming, None)
                if (batch := current.result()) is not None:
                    yield batch

    def _read(self, number: int, start: int, decoders: ThreadPoolExecutor) -> Batch | None:
        part = self.parts[number]
        places = range(start, min(start + self.batch_size, len(part.items)))
        raw: list[Any] = [part.items[place] for place in places]
        images: list[Tensor] = []
        rows: list[Row] = []
        kept: list[Raw] = []
        for place, item, image in zip(places, raw, decoders.map(self._decode, raw), strict=True):
            row = self._row(number, place, item)
            if isinstance(image, UnreadableImageError):
                if self.corrupt == "error":
                    raise image
                self.skipped.append(row.file)
                continue
            if images and image.shape != images[0].shape:
                sizes = " and ".join("x".join(map(str, one.shape[1:])) for one in (images[0], image))
                raise ValueError(f"images must be of one size, but are {sizes} pixels, as {row.file}: give image_size")
            images.append(image)
            rows.append(row)
            kept.append(item)
        return Batch(torch.stack(images), tuple(rows), tuple(kept)) if images else None

    def _decode(self, item: Raw) -> Tensor | UnreadableImageError:
        try:
            return read_image(item, channels=self.channels, size=self.size, value_range=self.value_range)
        except UnreadableImageError as error:
            return error

    def _row(self, number: int, place: int, item: Raw) -> Row:
        labels = self.parts[number].labels
        label = -1 if labels is None else int(labels[place])
        return Row(
            file=str(item) if isinstance(item, Path | Encoded) else f"image {place}",
            split=SPLITS[number] if len(self.parts) > 1 else "",
            label=("" if label < 0 else self.class_names[label] if self.class_names else str(label)),
        )


def values_of(part: Listed, *, channels: int, given: Range | None, known: Range | None) -> tuple[Range | None, str]:
    """Which values are black and white, and what to say about it.

    Those that were given; else, of images of more than 8 bits, those that the encoder was trained with, or what is
    measured. The first readable image tells the type.
    """
    if given is not None or isinstance(part.items, Tensor):
        return given, ""
    if known is None:
        measured = find_range(part, channels)
        return (None, "") if measured is None else measured
    for place in range(len(part.items)):
        try:
            dtype, _ = read_extremes(part.items[place], channels=channels)
        except UnreadableImageError:
            continue
        if dtype == np.uint8:
            break
        return known, f"pixels are {dtype}: {known[0]:g} is black and {known[1]:g} is white, as in training"
    return None, ""
