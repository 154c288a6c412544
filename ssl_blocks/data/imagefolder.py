"""Folders of image files: which files there are, what they are called, and what is passed over."""

import os
from collections.abc import Iterator
from pathlib import Path

from ssl_blocks.data.files import SUFFIXES
from ssl_blocks.data.items import Paths
from ssl_blocks.data.layout import (
    DANGLING,
    Entry,
    PassedOver,
    arrange,
    images_of,
    is_foreign,
    kind_of,
    known_splits,
)
from ssl_blocks.data.reading import Found, Listed


def list_folder(path: Path) -> Found:
    """Find the images of a folder without opening them.

    Three layouts are known: ``train/`` with ``test/`` or ``val/`` (or neither), each of class folders; class
    folders alone; a flat folder of images without labels. ``train`` beside other class folders is a class. As
    torchvision's ``ImageFolder`` has it, all images at any depth below a class folder are of its class, links are
    followed, and images beside class folders are passed over. A single class folder holds images without labels.
    Hidden files and folders are passed over, too, and those that storage devices and other systems leave behind
    (``@eaDir``, ``__MACOSX``).

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: see `ssl_blocks.data.layout.arrange`.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"imagefolder:{path} must name an existing folder")
    known, others = known_splits(
        entry.name for entry in os.scandir(path) if entry.is_dir() and not is_foreign(entry.name)
    )
    splits = [path / name for name in (known, *others) if name is not None]  # what lies beside them is not looked at
    entries = [entry for folder in splits for entry in _entries(folder, f"{folder.name}/")] or list(_entries(path, ""))
    files = [path / entry.name for entry in entries]
    train, test, passed = arrange(f"imagefolder:{path}", entries)
    part, *held_out = [
        Listed(Paths([files[place] for place in own.places]), own.labels) for own in (train, test) if own is not None
    ]
    dangling = tuple(file for file, entry in zip(files, entries, strict=True) if entry.kind == DANGLING)
    return Found(part, held_out[0] if held_out else None, train.class_names, unread=dangling).told(passed)


def list_images(path: Path) -> tuple[list[Path], PassedOver]:
    """All images below a folder, at any depth and in the order of their paths, and what was passed over.

    Raises:
        ValueError: if there are none.
    """
    passed = PassedOver()
    entries = list(_entries(path, ""))
    files = [path / entries[place].name for place in images_of(list(enumerate(entries)), passed)]
    if not files:
        held = f"; it holds {passed}" if passed else ""
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
