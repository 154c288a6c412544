"""How folders of images become splits and classes, whether they lie on disk or in an archive."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_blocks.data.files import SUFFIXES

SYSTEM_FOLDERS = ("@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found", "system volume information")
DANGLING, HIDDEN, BESIDE = "dangling link", "hidden file", "image beside the class folders"
HELD_OUT = ("test", "val")
KINDS = ", ".join(SUFFIXES)


class Entry(NamedTuple):
    """What lies in a folder: its name below it, with slashes (one at the end of a folder's), and why it is no image."""

    name: str
    kind: str | None = None


class Listing(NamedTuple):
    """Images of one split, by their places among the entries; class indices (``None``: no classes), and class names."""

    places: list[int]
    labels: Int[Tensor, " n"] | None
    class_names: tuple[str, ...]


class PassedOver(Counter[str]):
    """What lies in a folder and is not read: how many of each kind."""

    def note(self, kind: str, count: int = 1) -> None:
        """Count things of a kind."""
        if count:
            self[kind] += count

    def __str__(self) -> str:
        words = []
        for kind, count in self.most_common():
            several = kind if kind.startswith(".") or count == 1 else re.sub(r"( beside |$)", r"s\1", kind, count=1)
            words.append(f"{count:,} {several}")
        return ", ".join(words)


def kind_of(name: str) -> str | None:
    """Why a file of this name is not read; ``None``: it is an image."""
    name = name.rpartition("/")[2]
    if name.startswith("."):
        return HIDDEN
    if name.lower().endswith(SUFFIXES):
        return None
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if stem and dot else "file without suffix"


def is_foreign(name: str) -> bool:
    """Whether a folder is none of the user's: with a leading dot, or of a storage device or another system."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def known_splits(folders: Iterable[str]) -> tuple[str | None, tuple[str, ...]]:
    """Which of the folders on top is ``train``, and which may be held out; ``train`` beside classes is a class."""
    names = set(folders)
    held_out = tuple(name for name in HELD_OUT if name in names)
    return ("train", held_out) if "train" in names and (held_out or len(names) == 1) else (None, ())


def arrange(where: str, entries: Sequence[Entry]) -> tuple[Listing, Listing | None, PassedOver]:
    """Find splits and classes of images by the folders that they lie in, by the rules of ``imagefolder:``.

    Args:
        where: what the whole is called in messages.
        entries: all that lies there, those in foreign folders left out.

    Returns:
        The listings of the train and of the test split (``None`` where the layout has none), and what was passed
        over.

    Raises:
        ValueError: if it or a class folder is without images, or the classes of train and test differ.
    """
    passed = PassedOver()
    members = list(enumerate(entries))
    below = _by_folder(members)[0]
    name, held_out = known_splits(below)
    train = _split(where, members if name is None else below[name], passed)
    if not held_out:
        return _labelled(train), None, passed
    # a flat test/ beside a val/ of class folders is ImageNet's: its test images have no labels
    chosen = next((part for part in held_out if _has_classes(below[part])), held_out[0])
    test = _split(where, below[chosen], passed)
    if train.class_names != test.class_names:
        only_train = sorted(set(train.class_names) - set(test.class_names))
        only_test = sorted(set(test.class_names) - set(train.class_names))
        raise ValueError(
            f"{where} must have the same class folders for train and test, but only train has "
            f"{only_train} and only test has {only_test}"
        )
    return _labelled(train), _labelled(test), passed


Members = list[tuple[int, Entry]]


def _by_folder(members: Members) -> tuple[dict[str, Members], Members]:
    """What lies in each folder on top, its name taken off, and what lies beside them."""
    below: dict[str, Members] = {}
    beside: Members = []
    for place, entry in members:
        folder, slash, rest = entry.name.partition("/")
        if not slash:
            beside.append((place, entry))
        else:
            below.setdefault(folder, [])
            if rest:
                below[folder].append((place, Entry(rest, entry.kind)))
    return below, beside


def images_of(members: Members, passed: PassedOver) -> list[int]:
    """Places of the images in the order of their paths, whatever folders they lie in."""
    found = [(entry.name.split("/"), place) for place, entry in members if entry.kind is None and entry.name[-1] != "/"]
    passed.update(entry.kind for _, entry in members if entry.kind is not None)
    return [place for _, place in sorted(found)]


def _has_classes(members: Members) -> bool:
    return any(images_of(inner, PassedOver()) for inner in _by_folder(members)[0].values())


def _labelled(listing: Listing) -> Listing:
    """Leave out labels that say nothing: one class is how ImageFolder wants images without labels."""
    return listing if len(listing.class_names) > 1 else Listing(listing.places, None, ())


def _split(where: str, members: Members, passed: PassedOver) -> Listing:
    below, loose = _by_folder(members)
    beside = images_of(loose, passed)
    found: dict[str, list[int]] = {}
    empty: dict[str, PassedOver] = {}
    for name in sorted(below):
        own = PassedOver()
        places = images_of(below[name], own)
        if places:
            found[name] = places
        else:
            empty[name] = own
        passed.update(own)
    if not found:
        if not beside:
            held = f"; it holds {passed}" if passed else ""
            raise ValueError(f"{where} must hold images or class folders, but has neither (images: {KINDS}){held}")
        return Listing(beside, None, ())
    for name, own in empty.items():
        held = f", but has {own}" if own else ""
        raise ValueError(f"{where}: class folder {name!r} must hold images ({KINDS}){held}")
    passed.note(BESIDE, len(beside))
    counts = torch.tensor([len(places) for places in found.values()])
    places = [place for members in found.values() for place in members]
    return Listing(places, torch.arange(len(found)).repeat_interleave(counts), tuple(found))
