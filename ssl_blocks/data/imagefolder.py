"""Folders of image files: which files there are, and what they are called."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_blocks.data.files import SUFFIXES


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
