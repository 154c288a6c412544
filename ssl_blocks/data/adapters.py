"""Data of other kinds as a `Source`: data sets of torch, arrays, tables of files."""

import csv
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from ssl_blocks.data.files import Raw
from ssl_blocks.data.hugging_face import HuggingFaceImages, holds_files
from ssl_blocks.data.items import Paths
from ssl_blocks.data.protocol import Source
from ssl_blocks.data.reading import Found, Listed, Storage
from ssl_blocks.data.streams import IMAGES, LABELS, StreamImages, image_in, is_stream, place_of
from ssl_blocks.doors import checked
from ssl_blocks.files import at_home

TELL_EVERY = 10.0  # seconds
_ONE_AT_A_TIME = threading.Lock()  # data sets need not bear threads; processes have a lock each


@checked
class DatasetImages:
    """A map-style data set of torch: its items are images, tuples that begin with one, or mappings.

    Args:
        dataset: with ``__len__`` and ``__getitem__``. An image is a PIL image, a path, an array ``[H, W]`` or
            ``[H, W, C]``, or a tensor ``[C, H, W]``.
        image: place or key of the image in an item.
        label: place or key of the label; ``None`` leaves labels out.
        labels: ``[N]``; ``None`` takes the data set's ``targets`` or ``labels``, and else reads every item once, which
            is told on the way.
        class_names: by label; ``None`` takes the data set's ``classes``, if it has them.

    Examples:
        >>> pairs = [(np.zeros((8, 8), np.uint8), 0), (np.ones((8, 8), np.uint8), 1)]
        >>> DatasetImages(pairs).labels
        tensor([0, 1])
    """

    def __init__(
        self,
        dataset: Any,
        *,
        image: int | str | None = None,
        label: int | str | None = "auto",
        labels: Any = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if not len(dataset):
            raise ValueError("dataset must hold at least one image, but is empty")
        self.dataset, first = dataset, dataset[0]
        self.image = place_of(first, IMAGES, 0) if image is None else image
        if label == "auto":
            label = place_of(first, LABELS, 1)
        if labels is None and label is not None:
            labels = told_labels(dataset)
            if labels is None or len(labels) != len(dataset):
                labels = _read_labels(dataset, label)
        self.labels = None if labels is None else _as_labels(labels, len(dataset))
        self.class_names = _class_names(self.labels, _told_names(dataset) if class_names is None else class_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Raw:
        with _ONE_AT_A_TIME:
            item = self.dataset[index]
        return image_in(item, self.image)


def told_labels(dataset: Any) -> Any:
    """Labels that a data set tells without reading its items, also inside ``Subset`` and ``ConcatDataset``; or none."""
    if isinstance(dataset, Subset):
        whole = told_labels(dataset.dataset)
        return None if whole is None else np.asarray(whole)[np.asarray(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [told_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else np.concatenate([np.asarray(part) for part in parts])
    return next((getattr(dataset, name) for name in ("targets", "labels") if hasattr(dataset, name)), None)


def _told_names(dataset: Any) -> Sequence[str]:
    while isinstance(dataset, (Subset, ConcatDataset)):
        dataset = dataset.dataset if isinstance(dataset, Subset) else dataset.datasets[0]
    return getattr(dataset, "classes", ())


def _read_labels(dataset: Any, label: int | str) -> list[Any]:
    """Labels out of items that have to be read, and as a rule decoded, for them; what takes long is told."""
    count, told = len(dataset), time.monotonic()
    labels = []
    for i in range(count):
        if time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            more = f"{i:,} of {count:,} (DatasetImages(dataset, labels=...) or a dataset with targets spares it)"
            print(f"reading every item for its label: {more}", file=sys.stderr, flush=True)
        labels.append(dataset[i][label])
    return labels


@checked
class ArrayImages:
    """Images in memory: an array ``[N, H, W]`` or ``[N, H, W, C]``, or a tensor ``[N, C, H, W]`` or ``[N, H, W]``.

    Args:
        images: of any real type, all of one size.
        labels: ``[N]`` class indices, -1 for an image without one.
        class_names: by label.

    Raises:
        ValueError: if the images are not so shaped, or labels are not one per image.
    """

    def __init__(
        self, images: NDArray[Any] | Tensor, labels: Any = None, class_names: Sequence[str] | None = None
    ) -> None:
        if isinstance(images, Tensor):
            images = images.detach().cpu()
        if images.ndim not in (3, 4) or 0 in images.shape:
            kinds = "a tensor [N, C, H, W] or an array [N, H, W, C]"
            raise ValueError(f"images of shape {tuple(images.shape)} must be {kinds}, or [N, H, W]")
        self.images = images
        self.labels = None if labels is None else _as_labels(labels, len(images))
        self.class_names = _class_names(self.labels, class_names or ())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Raw:
        return self.images[index]


@checked
class CsvFiles:
    """A table of files: a column ``file``, ``path``, ``image`` or ``filename``, and with labels ``label`` or ``class``.

    Labels are sorted names, or whole numbers as they are; an empty one is an image without a label. Paths are relative
    to the table.

    Args:
        path: of the table, comma-separated with a header.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the table has no such column, or no rows.
    """

    def __init__(self, path: str | Path) -> None:
        path = at_home(path)
        if not path.is_file():
            raise FileNotFoundError(f"csv:{path} must name a file")
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
        columns = list(rows[0]) if rows else []
        file = next((name for name in ("file", "path", "image", "filename") if name in columns), None)
        if file is None:
            raise ValueError(f"csv:{path} must have rows and a column file, path, image or filename, not {columns}")
        label = next((name for name in ("label", "class") if name in columns), None)
        self.paths = Paths([path.parent / row[file] for row in rows])
        self.labels: Int[Tensor, " n"] | None = None
        self.class_names: tuple[str, ...] = ()
        if label is not None:
            self.labels, self.class_names = _by_name([row[label] or "" for row in rows])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Raw:
        return self.paths[index]


def read_arrays(path: str | Path) -> ArrayImages:
    """Images of a ``.npy`` file, or ``images`` and ``labels`` of a ``.npz``."""
    path = at_home(path)
    if not path.is_file():
        raise FileNotFoundError(f"array:{path} must name a file")
    if path.suffix != ".npz":
        return ArrayImages(np.load(path, mmap_mode="r", allow_pickle=False))
    held = np.load(path, allow_pickle=False)
    if "images" not in held:
        raise ValueError(f"array:{path} must hold 'images' and may hold 'labels', but has {sorted(held)}")
    return ArrayImages(held["images"], held.get("labels"))


def as_found(data: Any) -> Found:
    """What `ssl_blocks.data.load` takes in place of a name, as parts to train and to test on.

    Raises:
        TypeError: if it is no data.
    """
    if isinstance(data, Found):
        return data
    train, test = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    source, held_out = _as_source(train), None if test is None else _as_source(test)
    found = Found(listed(source), None if held_out is None else listed(held_out), source.class_names)
    return found if StreamImages in (type(source), type(held_out)) else found.told()


def _as_source(data: Any) -> Source:
    if is_stream(data) or (callable(data) and not hasattr(data, "__getitem__")):
        return StreamImages(data)
    if isinstance(data, Source) and not isinstance(data[0], (tuple, Mapping)):
        return data
    if isinstance(data, (np.ndarray, Tensor)):
        return ArrayImages(data)
    if holds_files(data):
        return HuggingFaceImages(data)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, (str, bytes, Mapping)):
        return DatasetImages(data)
    raise TypeError(
        f"data of type {type(data).__name__} must be a Source, a data set, an array, a tensor, an iterable of images, "
        "or two of these to train and to test on"
    )


def hold_streams(found: Found, *, storage: Storage, max_bytes: int, most: int | None, decoded: int | None) -> Found:
    """Read streams into memory that are to lie there: those to test on, and others but for ``storage="stream"``.

    Args:
        found: streams, or anything else.
        storage: ``"auto"``: a stream stays one if its images, decoded, are known to need more than ``max_bytes``.
        max_bytes: see `StreamImages.items`.
        most: images of train.
        decoded: bytes of an image; ``None``: not known.
    """

    def held(part: Listed) -> Listed:
        if not isinstance(stream := part.items, StreamImages):
            return part
        names = stream.class_names or None
        return listed(DatasetImages(stream.items(max_bytes), image=stream.image, label=stream.label, class_names=names))

    if not any(part and isinstance(part.items, StreamImages) for part in (found.train, found.test)):
        return found
    train, stream = found.train, found.train.items
    if isinstance(stream, StreamImages) and storage != "memory":
        stream = stream.limited(most)
        if storage == "stream" or (stream.count or 0) * (decoded or 0) > max_bytes:
            train = Listed(stream, None)
    if train is found.train:
        train = held(train)
    names = getattr(train.items, "class_names", ()) or found.class_names
    return Found(train, None if found.test is None else held(found.test), names).told()


def listed(source: Source) -> Listed:
    """A split of a source; what has 8 bits and is in memory is there already."""
    if isinstance(source, ArrayImages) and source.images.dtype in (torch.uint8, np.uint8):
        images = torch.from_numpy(np.array(source.images)) if isinstance(source.images, np.ndarray) else source.images
        if images.ndim == 3:
            images = images[:, None]
        elif isinstance(source.images, np.ndarray):
            images = images.permute(0, 3, 1, 2)
        return Listed(images, source.labels)
    return Listed(source, source.labels)


def _as_labels(labels: Any, count: int) -> Int[Tensor, " n"]:
    found = torch.as_tensor(labels if isinstance(labels, Tensor) else np.asarray(labels))
    if found.shape != (count,) or found.is_floating_point() or found.is_complex():
        raise ValueError(f"labels of {found.dtype} {tuple(found.shape)} must be one whole number for each of {count}")
    return found.long()


def _class_names(labels: Tensor | None, names: Sequence[str]) -> tuple[str, ...]:
    if labels is None:
        return ()
    count = int(labels.max()) + 1
    if names and len(names) < count:
        raise ValueError(f"class_names must be one for each of {count} classes, got {len(names)}")
    return tuple(map(str, names or range(count)))


def _by_name(names: Sequence[str]) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Class index of every name, -1 for an empty one, and the classes: whole numbers count as themselves."""
    known = sorted({name for name in names if name})
    if known and all(name.isdecimal() for name in known):
        labels = torch.tensor([int(name) if name else -1 for name in names])
        return labels, tuple(map(str, range(int(labels.max()) + 1)))
    places = {name: place for place, name in enumerate(known)} | {"": -1}
    return torch.tensor([places[name] for name in names]), tuple(known)
