"""Data sets by name."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_blocks.bounds import Bytes, Channels, Count, Seed
from ssl_blocks.code import import_named, is_code
from ssl_blocks.data import crowds
from ssl_blocks.data.adapters import ArrayImages, CsvFiles, as_found, hold_streams, listed, read_arrays, told_labels
from ssl_blocks.data.archives import read_shards, read_zip
from ssl_blocks.data.arrays import Range, check_range
from ssl_blocks.data.augment import channel_statistics
from ssl_blocks.data.files import read_shape
from ssl_blocks.data.generated import GENERATED, NUM_TEST, NUM_TRAIN
from ssl_blocks.data.hugging_face import first_of_parquet, read_parquet, read_saved
from ssl_blocks.data.imagefolder import list_folder
from ssl_blocks.data.items import Paths, fingerprint
from ssl_blocks.data.reading import (
    Found,
    Listed,
    Size,
    SplitReader,
    Storage,
    as_pair,
    find_range,
    hold_out,
    some_images,
)
from ssl_blocks.data.splits import Corrupt, ImageData, ImageShape, class_by_class
from ssl_blocks.doors import checked
from ssl_blocks.files import at_home

HELD_OUT_SHARE = 0.1
IN_CODE = "in-code"  # the name of data that a run was given in code


@checked
def load(
    name: Any,
    *,
    image_size: Size | None = None,
    channels: Channels | None = None,
    root: str | Path = ".data",
    max_train: Count | None = None,
    max_test: Count | None = None,
    seed: Seed = 0,
    storage: Storage = "auto",
    max_bytes: Bytes = 8 * 2**30,
    corrupt: Corrupt = "error",
    value_range: Range | None = None,
) -> ImageData:
    """Load a data set by name, or prepare one that is given.

    Args:
        name: ``digits`` (8x8 grey digits that come with scikit-learn); ``crowds`` (ten of them, all of one class, at
            random places on 32x32 pixels, each white or black); ``volumes``, ``waves`` or ``cells``, made by
            formulas (a volume's slices as channels, waves as images of one row, cells in four stains); ``cifar10``,
            ``cifar100``, ``stl10`` (its unlabelled images are for training, too) or ``fashion-mnist``, which
            torchvision downloads; ``imagenet`` (ImageNet's archives in ``root``, as torchvision reads them);
            ``imagefolder:PATH``: class folders below PATH or below PATH/train and PATH/test (or val), or a flat folder
            of images without labels; ``csv:PATH`` (a table of files and labels), ``zip:PATH`` (a folder in an archive),
            ``array:PATH`` (a ``.npy`` of images, or a ``.npz`` of ``images`` and ``labels``) or ``hf:PATH`` (a data set
            of Hugging Face on disk); what `register_source` was told; or ``MODULE:FUNCTION``, a function without
            arguments in code of your own. In place of a name: a `Source`, a map-style data set of torch, an array
            ``[N, H, W]`` or ``[N, H, W, C]``, a tensor ``[N, C, H, W]``, or two of these, to train and to test on; a
            function returns the same.
            Labelled data without a test split has 10 % held out, but never the last image of a class.
        image_size: height and width in pixels, or the side of a square; images are resized until they cover it, then
            the centre is cropped. ``None`` keeps the size of the data.
        channels: 1 makes images grey, 3 makes grey ones RGB; ``None`` keeps the data's own, and means 3 for
            pictures of 8 bits in files.
        root: folder for downloads.
        max_train: most images of the train split, the same number of each class as far as possible.
        max_test: the same for the test split.
        seed: decides which images are held out and which are left out.
        storage: ``"memory"``: files are decoded once; ``"stream"``: whenever they are needed; ``"auto"``: in
            memory if ``max_bytes`` suffices. Data that does not come in files is always in memory.
        max_bytes: the most memory in bytes that the images may take.
        corrupt: what to do about a file that is no readable image: ``"error"`` or ``"skip"``.
        value_range: the values that are black and white; images are held in 16 bits then. ``None``: images of 8 bits
            stay as they are, and of others the range is measured (on 2,000 images of the train split at most) and
            told; values beyond it become its ends.

    Returns:
        The images and labels, with mean and std per channel of the train split as loaded (of 2,000 images
        where data is streamed), and remarks on what was found.

    Raises:
        FileNotFoundError: if the folder is missing, or a download failed.
        TypeError: if what is given is no data.
        ValueError: if the name is unknown, a number is out of range, a folder or a file in it cannot be used,
            or the images would need more than ``max_bytes``.

    Examples:
        >>> data = load("digits", image_size=16, max_train=100)
        >>> data.shape, len(data.train), len(data.test)
        (ImageShape(channels=1, height=16, width=16), 100, 500)
        >>> load(torch.zeros(20, 5, 8, 8, dtype=torch.uint8), image_size=(4, 8)).shape
        ImageShape(channels=5, height=4, width=8)
    """
    size = as_pair(image_size)
    check_range(value_range)
    decoded = None if size is None else (channels or 3) * size[0] * size[1] * (1 if value_range is None else 2)
    found = hold_streams(
        find_named(name, at_home(root)), storage=storage, max_bytes=max_bytes, most=max_train, decoded=decoded
    )
    train, test = found.train, found.test
    if value_range is not None and isinstance(train.items, Tensor):
        raise ValueError(f"value_range={value_range} must be None for images of 8 bits in memory")
    generator = torch.Generator().manual_seed(seed)
    if test is None and train.labels is not None and len(train.items) > 1:
        num_test = max(1, round(HELD_OUT_SHARE * len(train.items)))
        train, test = hold_out(train, num_test, generator)
        test = test if len(test.items) else None  # one image per class: none to spare
    parts = [_subset(train, max_train, generator)]
    parts += [] if test is None else [_subset(test, max_test, generator)]
    remarks = found.remarks
    if value_range is None and (measured := find_range(parts[0], channels)) is not None:
        value_range, told = measured
        remarks += (told,)
    splits = SplitReader(size, channels, storage, max_bytes, corrupt, value_range).read(parts)
    seen = some_images(splits[0])
    mean, std = channel_statistics(seen)
    test_split = splits[1] if len(splits) > 1 else None
    title = name if isinstance(name, str) else type(name).__name__
    more = (mean, std, value_range, remarks, found.unread, fingerprint(parts[0].items, seen))
    return ImageData(title, splits[0], test_split, found.class_names, *more)


@checked
def find_shape(
    name: Any, *, image_size: Size | None = None, channels: Channels | None = None, root: str | Path = ".data"
) -> ImageShape:
    """Tell the shape of a data set's images; one image is read, and nothing is downloaded.

    Raises:
        FileNotFoundError: if the data is not there.
        ValueError: if the name is unknown or a number out of range.
    """
    if isinstance(name, str) and name in SHAPES:
        own = SHAPES[name]
    else:
        is_parquet = str(name).startswith("parquet:")  # of which no table is made for this
        items = [first_of_parquet(name[8:])] if is_parquet else find_named(name, at_home(root)).train.items
        own = ImageShape(*(items.shape[1:] if isinstance(items, Tensor) else read_shape(items[0], channels=channels)))
    return ImageShape(channels or own.channels, *(as_pair(image_size) or own[1:]))


@checked
def register_source(name: str, find: Callable[[str], Any]) -> None:
    """Make data known by a name, for ``data.name`` and `load`.

    Args:
        name: ``word``, or ``word:`` for names that go on with a path or whatever else the source wants.
        find: called with what follows the colon (``""`` where nothing does); returns what `load` takes in place of a
            name.

    Raises:
        ValueError: if the name is taken.

    Examples:
        >>> register_source("stripes:", lambda width: torch.zeros(4, 1, 8, int(width), dtype=torch.uint8))
        >>> load("stripes:6").shape
        ImageShape(channels=1, height=8, width=6)
    """
    if name in SOURCES or name in KINDS:
        raise ValueError(f"name={name!r} must be another one: it is taken")
    if name.endswith(":"):
        KINDS[name] = lambda rest, root: as_found(find(rest))
    else:
        SOURCES[name] = lambda root: as_found(find(""))


def find_named(name: Any, root: Path) -> Found:
    """What a source holds that goes by a name, or that stands in place of one."""
    if not isinstance(name, str):
        return as_found(name)
    if name == IN_CODE:
        raise ValueError(
            f"name={name!r} says that the run was given its data in code: give it there again, as in "
            "Run.prepare(config, assemble, data=...), or name it here"
        )
    if name in SOURCES:
        return SOURCES[name](root)
    kind, colon, rest = name.partition(":")
    if kind + ":" in KINDS:
        if not rest:
            what = "folder" if kind == "imagefolder" else "file"
            raise ValueError(f"name={name!r} must name a {what}: {kind}:PATH")
        return KINDS[kind + ":"](rest, root)
    if colon and is_code(name):
        make = import_named(name)
        made = make()
        return as_found(make if isinstance(made, Iterator) else made)  # what is read once only is made again and again
    names = [*SOURCES, *(f"{kind}PATH" for kind in KINDS)]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    raise ValueError(f"name={name!r} must be one of {', '.join(names)}, or MODULE:FUNCTION; did you mean {nearest!r}?")


def _digits(root: Path) -> Found:
    from sklearn.datasets import load_digits  # slow to import, and needed for this name only

    bunch = load_digits()
    images = torch.from_numpy(bunch.images)[:, None].mul(255 / 16).round().to(torch.uint8)
    part = Listed(images, torch.from_numpy(bunch.target).long())
    # one split for everyone, whatever the seed
    return Found(*hold_out(part, 500, torch.Generator().manual_seed(0)), tuple(map(str, range(10))))


def _crowds(root: Path) -> Found:
    digits, generator = _digits(root), torch.Generator().manual_seed(0)
    pools: list[tuple[Any, int]] = [(digits.train, crowds.NUM_TRAIN), (digits.test, crowds.NUM_TEST)]
    made = [Listed(*crowds.make_crowds(pool.items, pool.labels, count, generator)) for pool, count in pools]
    return Found(made[0], made[1], digits.class_names)


def _generated(name: str, root: Path) -> Found:
    make, class_names, _ = GENERATED[name]
    generator = torch.Generator().manual_seed(0)  # the same for everyone, whatever the seed
    train, test = (Listed(*make(count, generator)) for count in (NUM_TRAIN, NUM_TEST))
    return Found(train, test, class_names)


def _torchvision(name: str, class_name: str, splits: Sequence[dict[str, Any]], root: Path) -> Found:
    """A data set of torchvision that comes as one array and is downloaded where it is missing."""
    from torchvision import datasets

    kind = getattr(datasets, class_name)
    try:
        found = [kind(root, download=True, **split) for split in splits]
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"name={name!r} must be found in root={str(root)!r} or be downloaded by torchvision, but it is not "
            f"complete there, and the download failed ({type(error).__name__}: {error}). For a local copy in class "
            "folders use name='imagefolder:PATH'"
        ) from error
    pixels = [torch.as_tensor(split.data) if split.data.shape[1] == 3 else split.data for split in found]
    train, test = (listed(ArrayImages(own, told_labels(split))) for own, split in zip(pixels, found, strict=True))
    return Found(train, test, tuple(found[-1].classes))


def _imagenet(root: Path) -> Found:
    from torchvision.datasets import ImageNet

    try:
        found = [ImageNet(root, split=split) for split in ("train", "val")]
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"name='imagenet' must be found in root={str(root)!r} as torchvision reads it: "
            "ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or what was unpacked "
            f"of them ({error}). Class folders without these archives: name='imagefolder:PATH'"
        ) from error
    parts = [Listed(Paths([Path(file) for file, _ in split.samples]), torch.tensor(split.targets)) for split in found]
    return Found(parts[0], parts[1], tuple(names[0] for names in found[0].classes))


_TRAIN_AND_TEST = ({"train": True}, {"train": False})
SOURCES: dict[str, Callable[[Path], Found]] = {
    "digits": _digits,
    "crowds": _crowds,
    "cifar10": partial(_torchvision, "cifar10", "CIFAR10", _TRAIN_AND_TEST),
    "cifar100": partial(_torchvision, "cifar100", "CIFAR100", _TRAIN_AND_TEST),
    "stl10": partial(_torchvision, "stl10", "STL10", ({"split": "train+unlabeled"}, {"split": "test"})),
    "fashion-mnist": partial(_torchvision, "fashion-mnist", "FashionMNIST", _TRAIN_AND_TEST),
    "imagenet": _imagenet,
    **{name: partial(_generated, name) for name in GENERATED},
}
KINDS: dict[str, Callable[[str, Path], Found]] = {
    "imagefolder:": lambda path, root: list_folder(at_home(path)),
    "csv:": lambda path, root: as_found(CsvFiles(path)),
    "zip:": lambda path, root: read_zip(path),
    "shards:": lambda pattern, root: read_shards(pattern, root),
    "parquet:": lambda pattern, root: as_found(read_parquet(pattern, root)),
    "array:": lambda path, root: as_found(read_arrays(path)),
    "hf:": lambda path, root: as_found(read_saved(path)),
}
SHAPES = {
    "digits": ImageShape(1, 8, 8),
    "crowds": ImageShape(1, 32, 32),
    "cifar10": ImageShape(3, 32, 32),
    "cifar100": ImageShape(3, 32, 32),
    "stl10": ImageShape(3, 96, 96),
    "fashion-mnist": ImageShape(1, 28, 28),
    **{name: ImageShape(*shape) for name, (_, _, shape) in GENERATED.items()},
}


def _subset(part: Listed, count: int | None, generator: torch.Generator) -> Listed:
    # drawn even where nothing is left out, so that max_train has no influence on the test images
    labels = torch.zeros(len(part.items), dtype=torch.int64) if part.labels is None else part.labels.clamp(min=0)
    kept = class_by_class(labels, count, generator)
    return part if len(kept) == len(part.items) else part.take(kept)
