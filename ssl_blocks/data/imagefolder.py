"""Folders of image files: which files there are, and decoding them into one tensor."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
FILES_PER_JOB = 64


@dataclass(frozen=True)
class Listing:
    """Image files of one split, their class indices (``None``: no class folders), and the class names."""

    files: list[Path]
    labels: Int[Tensor, " n"] | None
    class_names: tuple[str, ...]


def list_folder(path: Path) -> tuple[Listing, Listing | None]:
    """Find the images of a folder without opening them.

    Three layouts are known: ``train/`` with ``test/`` or ``val/`` (or neither), each of class folders; class
    folders alone; a flat folder of images without labels. ``train`` beside other class folders is a class.

    Args:
        path: the folder.

    Returns:
        The listings of the train and of the test split; ``None`` where the layout has no test split.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if it or a class folder is without images, images lie beside class folders, or the classes
            of train and test differ.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"imagefolder:{path} must name an existing folder")
    held_out = [path / name for name in ("test", "val") if (path / name).is_dir()]
    if not (path / "train").is_dir() or not (held_out or len(_subfolders(path)) == 1):
        return _list_split(path), None
    train = _list_split(path / "train")
    if not held_out:
        return train, None
    # a flat test/ beside a val/ of class folders is ImageNet's: its test images have no labels
    test = _list_split(next((folder for folder in held_out if _subfolders(folder)), held_out[0]))
    if train.class_names != test.class_names:
        only_train = sorted(set(train.class_names) - set(test.class_names))
        only_test = sorted(set(test.class_names) - set(train.class_names))
        raise ValueError(
            f"imagefolder:{path} must have the same class folders for train and test, but only train has "
            f"{only_train} and only test has {only_test}"
        )
    return train, test


def _list_split(path: Path) -> Listing:
    folders, files = _subfolders(path), _images(path)
    kinds = ", ".join(SUFFIXES)
    if not folders and not files:
        raise ValueError(f"imagefolder:{path} must hold images or class folders, but has neither (images: {kinds})")
    if folders and files:
        raise ValueError(
            f"imagefolder:{path} must hold either class folders or images, but has both "
            f"(folder {folders[0].name!r}, image {files[0].name!r})"
        )
    if not folders:
        return Listing(files, None, ())
    labels: list[int] = []
    for label, folder in enumerate(folders):
        members = _images(folder)
        if not members:
            raise ValueError(f"imagefolder:{path}: class folder {folder.name!r} must hold images ({kinds})")
        files += members
        labels += [label] * len(members)
    return Listing(files, torch.tensor(labels), tuple(folder.name for folder in folders))


def _subfolders(path: Path) -> list[Path]:
    return sorted(Path(entry) for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _images(path: Path) -> list[Path]:
    # names with a leading dot are thumbnails and resource forks of other systems
    return sorted(
        Path(entry)
        for entry in os.scandir(path)
        if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
    )


def decode_files(files: Sequence[Path], *, image_size: int | None, max_bytes: int) -> UInt8[Tensor, "n 3 h w"]:
    """Decode image files to RGB in a pool of threads.

    Args:
        files: at least one path.
        image_size: side in pixels to which shorter sides are resized before the centre crop; ``None`` keeps
            the images as they are, and then all must have one size.
        max_bytes: the most memory in bytes that the decoded images may take.

    Returns:
        Images ``[N, 3, H, W]`` uint8.

    Raises:
        ValueError: if a file is no readable image, sizes differ while ``image_size`` is ``None``, or the
            images would need more than ``max_bytes``.
    """
    first = _decode(files[0], image_size)
    check_memory(len(files), tuple(first.shape), max_bytes)
    images = torch.empty(len(files), *first.shape, dtype=torch.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + FILES_PER_JOB, len(files))):
            image = _decode(files[i], image_size)
            if image.shape != first.shape:
                raise ValueError(
                    f"image_size=None must come with images of one size, but {files[0]} is "
                    f"{_size(first)} and {files[i]} is {_size(image)} (height x width): give image_size"
                )
            images[i] = image

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for _ in pool.map(fill, range(0, len(files), FILES_PER_JOB)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, the rest need not be decoded
    return images


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"


def _decode(file: Path, image_size: int | None) -> UInt8[Tensor, "3 h w"]:
    # Pillow, as torchvision 0.29 deprecates its own decoders; the two were equally fast on small JPEGs
    try:
        with Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode.startswith("I"):  # 16 bits: Pillow's conversion would saturate
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            pixels = np.array(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} must be a readable image ({', '.join(SUFFIXES)}): {reason}") from error
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return image if image_size is None else fit_images(image, image_size)


def fit_images(images: UInt8[Tensor, "*batch c h w"], size: int) -> UInt8[Tensor, "*batch c s s"]:
    """Resize the shorter side to ``size`` pixels with antialiasing, and crop the centre.

    Examples:
        >>> fit_images(torch.zeros(3, 20, 40, dtype=torch.uint8), 10).shape
        torch.Size([3, 10, 10])
    """
    fitted: Tensor = TF.center_crop(TF.resize(images, [size], antialias=True), [size, size])
    return fitted


def check_memory(count: int, shape: tuple[int, ...], max_bytes: int) -> None:
    """Refuse a data set that would not fit, before any of it is made.

    Raises:
        ValueError: if ``count`` uint8 images of ``shape`` (C, H, W) need more than ``max_bytes``.
    """
    channels, height, width = shape
    needed = count * channels * height * width
    if needed > max_bytes:
        raise ValueError(
            f"max_bytes={max_bytes} ({max_bytes / 2**30:.3g} GiB) must hold the decoded images, but {count} "
            f"images of {channels}x{height}x{width} need {needed} ({needed / 2**30:.3g} GiB): give a smaller "
            "max_train, max_test or image_size, or a larger max_bytes"
        )
