"""Images by index: paths that worker processes share, and parts of other sources."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt
from numpy.typing import NDArray
from torch import Tensor

from ssl_blocks.data.files import Encoded, Raw
from ssl_blocks.data.protocol import Items

SIZES = 1000  # files whose size is looked at (of millions on a network, that takes minutes), or images


class Paths:
    """Files, kept as one array of bytes: a list of millions would be copied in every worker, count by count."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = np.array([os.fsencode(path) for path in files])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Path:
        return Path(os.fsdecode(bytes(self.files[index])))


class Part:
    """Images at some places of others."""

    def __init__(self, items: Items, index: Tensor) -> None:
        self.items: Items = items
        self.index = index
        if isinstance(items, Part):  # where images lie is looked up once
            self.items, self.index = items.items, items.index[index]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Raw:
        return self.items[int(self.index[index])]


def name_of(items: Items, index: int) -> str:
    """What an image is called in messages."""
    raw = items[index]
    return str(raw) if isinstance(raw, (Path, Encoded)) else f"image {index}"


def every(count: int, most: int) -> list[int]:
    """At most so many places, evenly chosen."""
    places: list[int] = torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).long().tolist()
    return places


def fingerprint(items: Items | Tensor, images: UInt[Tensor, "k c h w"]) -> str:
    """What tells data from other data, wherever it lies.

    Of files: all names below their folder, in order, and sizes of some. Of all else: some images as they were decoded.

    Args:
        items: what a source found.
        images: that statistics look at.
    """
    paths, index = (items.items, items.index) if isinstance(items, Part) else (items, None)
    digest = hashlib.sha256()
    if isinstance(paths, Paths):
        _note_files(digest, paths.files if index is None else paths.files[index.numpy()])
    else:
        for place in every(len(images), SIZES):
            digest.update(images[place].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _note_files(digest: "hashlib._Hash", files: NDArray[Any]) -> None:
    above = len(os.path.commonpath([os.path.dirname(file) for file in (min(files.tolist()), max(files.tolist()))]))
    for file in files.tolist():
        digest.update(file[above:].lstrip(b"/") + b"\0")
    for place in every(len(files), SIZES):
        file = bytes(files[place])
        digest.update(b"%d " % (os.path.getsize(file) if os.path.exists(file) else -1))
