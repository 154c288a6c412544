"""Images that come one after the other and have no index."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ssl_blocks.bounds import Count
from ssl_blocks.data.files import Encoded, Raw
from ssl_blocks.doors import checked

IMAGES, LABELS = ("image", "img", "pixel_values"), ("label", "labels", "target")


@checked
class StreamImages:
    """Images that are read one after the other: an iterable data set of torch, or any other iterable.

    A pass is an epoch, and every process reads all of it and keeps its share, so a stream must not deal itself out. A
    run that goes on is the same to the bit if a pass gives the same items again; where the stream has ``set_epoch``, as
    those of Hugging Face, the same ones for the same epoch.

    Args:
        stream: gives images, tuples that begin with one, or mappings, as the items of `DatasetImages`; a new pass
            whenever it is iterated. Or a function without arguments that returns such a pass, a generator function say.
        count: images of an epoch, no more than a pass gives; ``None`` takes ``len(stream)``, and is counted where all
            images are held in memory.
        image: place or key of the image in an item.
        label: place or key of the label; ``None`` leaves labels out, which are used where images are held in memory.
        class_names: by label.

    Raises:
        TypeError: if it cannot be iterated.
        ValueError: if it can be iterated only once, or gives nothing.

    Examples:
        >>> def noise():
        ...     for i in range(3):
        ...         yield np.full((4, 4), i, np.uint8)
        >>> [int(image.max()) for image in StreamImages(noise).images(epoch=0)]
        [0, 1, 2]
    """

    labels: Int[Tensor, " n"] | None = None  # of what is not read yet, nobody knows any

    def __init__(
        self,
        stream: Any,
        *,
        count: Count | None = None,
        image: int | str | None = None,
        label: int | str | None = "auto",
        class_names: Sequence[str] = (),
    ) -> None:
        self.stream, self.class_names = stream, tuple(class_names)
        self.count = _length(stream) if count is None else count
        first = next(self._pass(0), None)
        if first is None:
            raise ValueError("stream must give at least one image, but is empty")
        self.image = place_of(first, IMAGES, 0) if image is None else image
        self.label = place_of(first, LABELS, 1) if label == "auto" else label

    def __len__(self) -> int:
        if self.count is None:
            raise ValueError(
                "count=None must say how many images an epoch has, for the stream does not: give StreamImages(stream, "
                "count=...), or have all of it held in memory (storage='memory')"
            )
        return self.count

    def __getitem__(self, index: int) -> Raw:
        """An image, after all before it were read."""
        return self.pick([index])[0]

    def images(self, epoch: int) -> Iterator[Raw]:
        """The images of an epoch."""
        return (image_in(item, self.image) for item in self._pass(epoch))

    def pick(self, index: Sequence[int]) -> list[Raw]:
        """Images at some places of the first epoch, which is read up to the last of them."""
        wanted = set(index)
        held = {i: raw for i, raw in enumerate(islice(self.images(0), max(index) + 1)) if i in wanted}
        if len(held) < len(wanted):
            raise ValueError(f"count={self.count} must be no more images than a pass of the stream gives")
        return [held[i] for i in index]

    def first(self, count: int) -> list[Raw]:
        """So many images, or all there are."""
        return list(islice(self.images(0), count))

    def limited(self, count: int | None) -> "StreamImages":
        """The same stream with at most so many images an epoch."""
        if count is None or (self.count is not None and self.count <= count):
            return self
        return StreamImages(self.stream, count=count, image=self.image, label=self.label, class_names=self.class_names)

    def items(self, max_bytes: int) -> list[Any]:
        """All items of the first epoch, in memory.

        Raises:
            ValueError: if they need more than ``max_bytes``.
        """
        held, size = [], 0
        for item in islice(self._pass(0), self.count):
            held.append(item)
            size += _size(image_in(item, self.image))
            if size > max_bytes:
                raise ValueError(
                    f"max_bytes={max_bytes} ({max_bytes / 2**30:.3g} GiB) must hold the images of the stream, but its "
                    f"first {len(held):,} need more: give storage='stream', image_size and StreamImages(stream, "
                    "count=...), or a larger max_bytes (data.max_memory_gib in a recipe)"
                )
        return held

    def _pass(self, epoch: int) -> Iterator[Any]:
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(epoch)
        given = self.stream() if callable(self.stream) and not isinstance(self.stream, Iterable) else self.stream
        passing: Iterator[Any] = iter(given)
        if passing is self.stream:
            raise ValueError(
                f"stream of type {type(self.stream).__name__} must give its images again in every epoch, but can be "
                "read only once: give the function that makes it"
            )
        return passing


def is_stream(data: Any) -> bool:
    """Whether data is to be read one after the other: it can be iterated, and has no index."""
    if isinstance(data, IterableDataset):
        # which has a place for an index that it does not have
        return getattr(type(data), "__getitem__", Dataset.__getitem__) is Dataset.__getitem__
    return isinstance(data, Iterable) and not hasattr(data, "__getitem__")


def image_in(item: Any, place: int | str | None) -> Raw:
    """The image of an item."""
    image: Raw | str = item if place is None else item[place]
    if isinstance(image, bytes):
        return Encoded("an image of the data set", image)
    return Path(image) if isinstance(image, str) else image


def place_of(item: Any, keys: Sequence[str], position: int) -> int | str | None:
    """Where in an item the image (position 0) or the label (position 1) is; ``None``: the item is the image itself.

    Raises:
        ValueError: if an item has fields, and none of them is known to be the image.
    """
    if isinstance(item, Mapping):
        found = next((key for key in keys if key in item), None)
        if found is None and position == 0:
            raise ValueError(f"image must name one of the data set's fields {sorted(map(str, item))}")
        return found
    if isinstance(item, (tuple, list)):
        return position if position < len(item) else None
    return None


def _length(stream: Any) -> int | None:
    try:
        return len(stream)
    except (TypeError, NotImplementedError):  # iterable data sets of torch need not know
        return None


def _size(raw: Raw) -> int:
    """Bytes of an image as it is held."""
    if isinstance(raw, Encoded):
        return len(raw.content)
    if isinstance(raw, Image.Image):
        return raw.size[0] * raw.size[1] * len(raw.getbands())
    return raw.nbytes if isinstance(raw, (np.ndarray, torch.Tensor)) else 0
