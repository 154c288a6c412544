"""Data sets by name, as uint8 images in memory."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_blocks.data.augment import channel_statistics
from ssl_blocks.data.imagefolder import check_memory, decode_files, fit_images, list_folder

HELD_OUT_SHARE = 0.1
CHUNK = 1024  # images resized at a time


class ImageShape(NamedTuple):
    """Channels, height and width of the images that training sees."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class ImageSplit:
    """Images in memory, and their labels where there are any.

    Args:
        images: ``[N, C, H, W]`` uint8.
        labels: ``[N]`` int64 class indices, or ``None``.

    Raises:
        TypeError: if the images are not uint8.
        ValueError: if they are not ``[N, C, H, W]``, or the labels are not one per image.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"] | None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8:
            raise TypeError(f"images of {self.images.dtype} must be uint8, 0..255")
        if self.images.ndim != 4:
            raise ValueError(f"images of shape {tuple(self.images.shape)} must be [N, C, H, W]")
        if self.labels is not None and self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels of shape {tuple(self.labels.shape)} must be one for each of {len(self)} images")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ImageData:
    """A data set: its splits, class names, and per-channel mean and std of train on the 0..1 scale."""

    name: str
    train: ImageSplit
    test: ImageSplit | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> ImageShape:
        """Shape of one image."""
        return ImageShape(*self.train.images.shape[1:])


@dataclass(frozen=True)
class _Part:
    """A split before it is read: decoded images, or the files that hold them."""

    items: Tensor | list[Path]
    labels: Tensor | None

    def take(self, index: Tensor) -> "_Part":
        items = self.items[index] if isinstance(self.items, Tensor) else [self.items[i] for i in index.tolist()]
        return _Part(items, None if self.labels is None else self.labels[index])


_Found = tuple[_Part, _Part | None, tuple[str, ...]]


def load(
    name: str,
    *,
    image_size: int | None = None,
    root: str | Path = ".data",
    max_train: int | None = None,
    max_test: int | None = None,
    seed: int = 0,
    max_bytes: int = 8 * 2**30,
) -> ImageData:
    """Load a data set by name.

    Args:
        name: ``digits`` (8x8 grey digits that come with scikit-learn), ``cifar10`` (torchvision downloads
            it), or ``imagefolder:PATH``: class folders below PATH or below PATH/train and PATH/test (or val),
            or a flat folder of images without labels. Labelled data without a test split has 10 % held out, but
            never the last image of a class.
        image_size: side in pixels; shorter sides are resized to it, then the centre is cropped. ``None``
            keeps the size of the data.
        root: folder for downloads.
        max_train: most images of the train split, the same number of each class as far as possible.
        max_test: the same for the test split.
        seed: decides which images are held out and which are left out.
        max_bytes: the most memory in bytes that the images may take.

    Returns:
        The images and labels, with mean and std per channel of the train split as loaded.

    Raises:
        FileNotFoundError: if the folder is missing, or a download failed.
        ValueError: if the name is unknown, a number is out of range, a folder or a file in it cannot be used,
            or the images would need more than ``max_bytes``.

    Examples:
        >>> data = load("digits", image_size=16, max_train=100)
        >>> data.train.images.shape, len(data.test)
        (torch.Size([100, 1, 16, 16]), 500)
    """
    for argument, value in (("image_size", image_size), ("max_train", max_train), ("max_test", max_test)):
        if value is not None and value < 1:
            raise ValueError(f"{argument}={value} must be at least 1, or None")
    train, test, class_names = _find(name, Path(root))
    generator = torch.Generator().manual_seed(seed)
    if test is None and train.labels is not None and len(train.items) > 1:
        num_test = max(1, round(HELD_OUT_SHARE * len(train.items)))
        train, test = _hold_out(train, num_test, generator)
        test = test if len(test.items) else None  # one image per class: none to spare
    train = _subset(train, max_train, generator)
    parts = [train] if test is None else [train, _subset(test, max_test, generator)]
    splits = _read(parts, image_size, max_bytes)
    mean, std = channel_statistics(splits[0].images)
    return ImageData(name, splits[0], splits[1] if test is not None else None, class_names, mean, std)


def _find(name: str, root: Path) -> _Found:
    kind, _, path = name.partition(":")
    if kind == "imagefolder":
        if not path:
            raise ValueError(f"name={name!r} must name a folder: imagefolder:PATH")
        return _imagefolder(Path(path).expanduser())
    if name not in SOURCES:
        names = [*SOURCES, "imagefolder:PATH"]
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise ValueError(f"name={name!r} must be one of {', '.join(names)}; did you mean {nearest!r}?")
    return SOURCES[name](root)


def _digits(root: Path) -> _Found:
    from sklearn.datasets import load_digits  # slow to import, and needed for this name only

    bunch = load_digits()
    images = torch.from_numpy(bunch.images)[:, None].mul(255 / 16).round().to(torch.uint8)
    part = _Part(images, torch.from_numpy(bunch.target).long())
    # one split for everyone, whatever the seed
    train, test = _hold_out(part, 500, torch.Generator().manual_seed(0))
    return train, test, tuple(str(digit) for digit in range(10))


def _cifar10(root: Path) -> _Found:
    from torchvision.datasets import CIFAR10

    try:
        train, test = (CIFAR10(root, train=is_train, download=True) for is_train in (True, False))
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"name='cifar10' must be found in root={str(root)!r} or be downloaded: {CIFAR10.base_folder} is "
            f"not complete there, and the download from {CIFAR10.url} failed ({type(error).__name__}: "
            f"{error}). For a local copy in class folders use name='imagefolder:PATH'"
        ) from error
    parts = [
        _Part(torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets))
        for split in (train, test)
    ]
    return parts[0], parts[1], tuple(train.classes)


def _imagefolder(path: Path) -> _Found:
    train, test = list_folder(path)
    held_out = None if test is None else _Part(test.files, test.labels)
    return _Part(train.files, train.labels), held_out, train.class_names


SOURCES: dict[str, Callable[[Path], _Found]] = {"digits": _digits, "cifar10": _cifar10}


def _shuffled_ranks(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random order of all items, and every item's place in a random order of its class."""
    order = torch.randperm(len(labels), generator=generator)
    by_class = order[labels[order].argsort(stable=True)]
    counts = labels.bincount()
    rank = torch.empty_like(order)
    rank[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return order, rank


def _hold_out(part: _Part, num_test: int, generator: torch.Generator) -> tuple[_Part, _Part]:
    """Split off a stratified share: of each class what is due to it, rounded up or down at random, but never all."""
    assert part.labels is not None
    _, rank = _shuffled_ranks(part.labels, generator)
    counts = part.labels.bincount()
    share = (rank + torch.rand(len(counts), generator=generator)[part.labels]) / counts[part.labels]
    last = rank == counts[part.labels] - 1
    index = share.masked_fill(last, torch.inf).argsort(stable=True)
    num_test = min(num_test, len(index) - int(last.sum()))
    return part.take(index[num_test:].sort().values), part.take(index[:num_test].sort().values)


def _subset(part: _Part, count: int | None, generator: torch.Generator) -> _Part:
    # drawn even where nothing is left out, so that max_train has no influence on the test images
    labels = torch.zeros(len(part.items), dtype=torch.int64) if part.labels is None else part.labels
    order, rank = _shuffled_ranks(labels, generator)
    if count is None or count >= len(part.items):
        return part
    return part.take(order[rank[order].argsort(stable=True)][:count].sort().values)


def _read(parts: list[_Part], image_size: int | None, max_bytes: int) -> list[ImageSplit]:
    """Decode the files of all parts together, or bring decoded images to the size asked for."""
    sizes = [len(part.items) for part in parts]
    files = [item for part in parts if isinstance(part.items, list) for item in part.items]
    if files:
        images = decode_files(files, image_size=image_size, max_bytes=max_bytes).tensor_split(sizes[:-1])
        return [ImageSplit(x, part.labels) for x, part in zip(images, parts, strict=True)]
    splits = []
    for part in parts:
        assert isinstance(part.items, Tensor)
        x = part.items
        size = tuple(x.shape[2:]) if image_size is None else (image_size, image_size)
        check_memory(sum(sizes), (x.shape[1], *size), max_bytes)
        if image_size is not None and tuple(x.shape[2:]) != size:
            x = torch.cat([fit_images(x[i : i + CHUNK], image_size) for i in range(0, len(x), CHUNK)])
        splits.append(ImageSplit(x, part.labels))
    return splits
