"""Folders of image files: which files there are, what they are called, and what is passed over."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ssl_blocks.data.files import SUFFIXES
from ssl_blocks.data.layout import (
    DANGLING,
    Entry,
    Listing,
    PassedOver,
    arrange,
    images_of,
    is_foreign,
    kind_of,
    known_splits,
)


class Folder(NamedTuple):
    """What a folder holds: its files, which of them are of which split, and what is passed over."""

    files: list[Path]
    train: Listing
    test: Listing | None
    passed: PassedOver
    dangling: list[Path]

    def of(self, listing: Listing) -> list[Path]:
        """Files of a split."""
        return [self.files[place] for place in listing.places]


def list_folder(path: Path) -> Folder:
    """Find the images of a folder without opening them.

    Three layouts are known: ``train/`` with ``test/`` or ``val/`` (or neither), each of class folders; class
    folders alone; a flat folder of images without labels. ``train`` beside other class folders is a class. As
    torchvision's ``ImageFolder`` has it, all images at any depth below a class folder are of its class, links are
    followed, and images beside class folders are passed over. A single class folder holds images without labels.
    Hidden files and folders are passed over, too, and those that storage devices and other systems leave behind
    (``@eaDir``, ``__MACOSX``).

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: see `ssl_blocks.data.layout.arrange`.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"imagefolder:{path} must name an existing folder")
    train, held_out = known_splits(
        entry.name for entry in os.scandir(path) if entry.is_dir() and not is_foreign(entry.name)
    )
    splits = [path / name for name in (train, *held_out) if name is not None]  # what lies beside them is not looked at
    entries = [entry for folder in splits for entry in _entries(folder, f"{folder.name}/")] or list(_entries(path, ""))
    files = [path / entry.name for entry in entries]
    dangling = [file for file, entry in zip(files, entries, strict=True) if entry.kind == DANGLING]
    return Folder(files, *arrange(f"imagefolder:{path}", entries), dangling)


def list_images(path: Path) -> tuple[list[Path], PassedOver]:
    """All images below a folder, at any depth and in the order of their paths, and what was passed over.

    Raises:
        ValueError: if there are none.
    """
    passed = PassedOver()
    entries = list(_entries(path, ""))
    files = [path / entries[place].name for place in images_of(list(enumerate(entries)), passed)]
    if not files:
        held = f"; it holds {passed}" if passed.kinds else ""
        raise ValueError(f"{path} must hold images ({', '.join(SUFFIXES)}), at any depth, but has none{held}")
    return files, passed


def _entries(path: Path, name: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Entry]:
    """All that lies in a folder, at any depth and in no order; ``above``: folders that lead here."""
    status = os.stat(path)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that it lies in
        return
    if name:
        yield Entry(name)
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                if not is_foreign(entry.name):
                    yield from _entries(Path(entry), f"{name}{entry.name}/", (*above, here))
                continue
            kind = kind_of(entry.name)
            yield Entry(f"{name}{entry.name}", DANGLING if kind is None and not entry.is_file() else kind)
