"""Folders of image files: which files there are, what they are called, and what is passed over."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_blocks.data.files import SUFFIXES

SYSTEM_FOLDERS = ("@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found", "system volume information")
DANGLING, HIDDEN, BESIDE = "dangling link", "hidden file", "image beside the class folders"


@dataclass
class PassedOver:
    """What lies in a folder and is not read: how many of each kind, and the links that point nowhere."""

    kinds: Counter[str] = field(default_factory=Counter)
    dangling: list[Path] = field(default_factory=list)

    def note(self, kind: str, count: int = 1) -> None:
        """Count things of a kind."""
        if count:
            self.kinds[kind] += count

    def __str__(self) -> str:
        return ", ".join(
            f"{count:,} {kind}" if kind.startswith(".") or count == 1 else f"{count:,} {_plural(kind)}"
            for kind, count in self.kinds.most_common()
        )


def _plural(kind: str) -> str:
    first, _, rest = kind.partition(" beside ")
    return f"{first}s beside {rest}" if rest else f"{kind}s"


@dataclass(frozen=True)
class Listing:
    """Image files of one split, their class indices (``None``: no class folders), and the class names."""

    files: list[Path]
    labels: Int[Tensor, " n"] | None
    class_names: tuple[str, ...]


def list_folder(path: Path) -> tuple[Listing, Listing | None, PassedOver]:
    """Find the images of a folder without opening them.

    Three layouts are known: ``train/`` with ``test/`` or ``val/`` (or neither), each of class folders; class
    folders alone; a flat folder of images without labels. ``train`` beside other class folders is a class. As
    torchvision's ``ImageFolder`` has it, all images at any depth below a class folder are of its class, links are
    followed, and images beside class folders are passed over. A single class folder holds images without labels.
    Hidden files and folders are passed over, too, and those that storage devices and other systems leave behind
    (``@eaDir``, ``__MACOSX``).

    Args:
        path: the folder.

    Returns:
        The listings of the train and of the test split (``None`` where the layout has no test split), and what was
        passed over.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if it or a class folder is without images, or the classes of train and test differ.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"imagefolder:{path} must name an existing folder")
    passed = PassedOver()
    held_out = [path / name for name in ("test", "val") if (path / name).is_dir()]
    if not (path / "train").is_dir() or not (held_out or len(_subfolders(path)) == 1):
        return _labelled(_list_split(path, passed)), None, passed
    train = _list_split(path / "train", passed)
    if not held_out:
        return _labelled(train), None, passed
    # a flat test/ beside a val/ of class folders is ImageNet's: its test images have no labels
    test = _list_split(next((folder for folder in held_out if _has_classes(folder)), held_out[0]), passed)
    if train.class_names != test.class_names:
        only_train = sorted(set(train.class_names) - set(test.class_names))
        only_test = sorted(set(test.class_names) - set(train.class_names))
        raise ValueError(
            f"imagefolder:{path} must have the same class folders for train and test, but only train has "
            f"{only_train} and only test has {only_test}"
        )
    return _labelled(train), _labelled(test), passed


def list_images(path: Path) -> tuple[list[Path], PassedOver]:
    """All images below a folder, at any depth and in the order of their paths, and what was passed over.

    Raises:
        ValueError: if there are none.
    """
    passed = PassedOver()
    files = sorted(_images(path, passed))
    if not files:
        held = f"; it holds {passed}" if passed.kinds else ""
        raise ValueError(f"{path} must hold images ({', '.join(SUFFIXES)}), at any depth, but has none{held}")
    return files, passed


def _labelled(listing: Listing) -> Listing:
    """Leave out labels that say nothing: one class is how ImageFolder wants images without labels."""
    return listing if len(listing.class_names) > 1 else Listing(listing.files, None, ())


def _list_split(path: Path, passed: PassedOver) -> Listing:
    kinds = ", ".join(SUFFIXES)
    beside = list(_images(path, passed, deep=False))
    found: dict[str, tuple[list[Path], PassedOver]] = {}
    empty: dict[str, tuple[list[Path], PassedOver]] = {}
    for folder in _subfolders(path):
        own = PassedOver()
        members = sorted(_images(folder, own))
        (found if members else empty)[folder.name] = (members, own)
        passed.kinds.update(own.kinds)
        passed.dangling += own.dangling
    if not found:
        if not beside:
            held = f"; it holds {passed}" if passed.kinds else ""
            raise ValueError(
                f"imagefolder:{path} must hold images or class folders, but has neither (images: {kinds}){held}"
            )
        return Listing(sorted(beside), None, ())
    for name, (_, own) in empty.items():
        held = f", but has {own}" if own.kinds else ""
        raise ValueError(f"imagefolder:{path}: class folder {name!r} must hold images ({kinds}){held}")
    passed.note(BESIDE, len(beside))
    files = [file for members, _ in found.values() for file in members]
    counts = torch.tensor([len(members) for members, _ in found.values()])
    return Listing(files, torch.arange(len(found)).repeat_interleave(counts), tuple(found))


def _has_classes(path: Path) -> bool:
    return any(next(_images(folder, PassedOver()), None) is not None for folder in _subfolders(path))


def _subfolders(path: Path) -> list[Path]:
    return sorted(Path(entry) for entry in os.scandir(path) if entry.is_dir() and not _is_foreign(entry.name))


def _is_foreign(name: str) -> bool:
    # names with a leading dot are thumbnails and resource forks of other systems
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _images(
    path: Path, passed: PassedOver, *, deep: bool = True, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[Path]:
    """Images of a folder, in no order, with those below it if ``deep``; ``above``: folders that lead here."""
    status = os.stat(path)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that it lies in
        return
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                if deep and not _is_foreign(entry.name):
                    yield from _images(Path(entry), passed, above=(*above, here))
            elif entry.name.startswith("."):
                passed.note(HIDDEN)
            elif not entry.name.lower().endswith(SUFFIXES):
                passed.note(Path(entry.name).suffix.lower() or "file without suffix")
            elif not entry.is_file():
                passed.note(DANGLING)
                passed.dangling.append(Path(entry))
            else:
                yield Path(entry)
