"""Images in zip archives and in tar shards, read where they lie, by index."""

import hashlib
import itertools
import os
import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_blocks.data.files import Encoded, Raw
from ssl_blocks.data.layout import Entry, PassedOver, arrange, is_foreign, kind_of
from ssl_blocks.data.reading import Found, Listed
from ssl_blocks.files import at_home, atomically

TEST_WORDS = {"test", "val", "valid", "validation"}
WORTH_KEEPING = 2_000  # images of a shard, from which on its index is kept: it takes a tenth of a second
NO_LABEL = -1


class ZipImages:
    """Images in a zip archive, by their names in it."""

    def __init__(self, path: Path, members: Sequence[str]) -> None:
        self.path, self.members = path, np.array(members)
        self._open: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Raw:
        if self._open is None or self._open[0] != os.getpid():  # a file that processes share has one position
            self._open = os.getpid(), zipfile.ZipFile(self.path)
        name = str(self.members[index])
        return Encoded(f"{self.path}/{name}", self._open[1].read(name))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}


def read_zip(path: str | Path) -> Found:
    """What a zip archive holds: splits and classes by its folders, as in ``imagefolder:``.

    One folder around all others is passed through.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no zip archive, or see `ssl_blocks.data.layout.arrange`.
    """
    path = at_home(path)
    if not path.is_file():
        raise FileNotFoundError(f"zip:{path} must name a file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"zip:{path} must be a zip archive")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not _is_foreign(name)]
    train, test, passed = arrange(f"zip:{path}", _unwrapped(names))
    part, *held_out = [
        Listed(ZipImages(path, [names[i] for i in own.places]), own.labels) for own in (train, test) if own is not None
    ]
    return Found(part, held_out[0] if held_out else None, train.class_names).told(passed)


def _is_foreign(name: str) -> bool:
    """Whether a member lies in a folder of a storage device or another system."""
    return any(is_foreign(part) for part in name.split("/")[:-1])


def _unwrapped(names: Sequence[str]) -> list[Entry]:
    """Members as entries, without the folders around all images."""
    images = [name.split("/") for name in names if name[-1] != "/" and kind_of(name) is None]
    depth = 0
    while images and len({parts[depth] for parts in images}) == 1 and all(len(parts) > depth + 2 for parts in images):
        depth += 1
    around = "".join(f"{part}/" for part in images[0][:depth]) if images else ""
    cut = [name.removeprefix(around) if name.startswith(around) else name for name in names]
    return [Entry(name, None if name.endswith("/") else kind_of(name)) for name in cut]


class ShardImages:
    """Images in uncompressed tar shards, by a table: any of them is one read, by any process or thread."""

    def __init__(self, shards: Sequence[Path], table: "Table") -> None:
        self.shards, self.table = tuple(shards), table

    def __len__(self) -> int:
        return len(self.table.names)

    def __getitem__(self, index: int) -> Raw:
        shard = self.shards[int(self.table.shards[index])]
        name = f"{shard}/{os.fsdecode(bytes(self.table.names[index]))}"
        with shard.open("rb") as stream:  # opened anew: nothing that processes or threads would share
            stream.seek(int(self.table.offsets[index]))
            return Encoded(name, stream.read(int(self.table.sizes[index])))


class Table(NamedTuple):
    """Where images lie, and their labels as the shards tell them (-1: they do not)."""

    names: NDArray[Any]
    shards: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]


def read_shards(pattern: str, root: Path | None) -> Found:
    """What tar shards hold, as WebDataset writes them: an image ``KEY.jpg`` has its label in ``KEY.cls``.

    Shards without any ``.cls`` are folders in archives: classes are found as in ``imagefolder:``. The names of the
    shards tell splits: those with ``train`` are for training, those with ``test`` or ``val`` are held out.

    Args:
        pattern: a tar archive, a folder of them, or several by ``{000..146}``, ``{a,b}``, ``*`` and ``?``.
        root: where the index of large shards is kept; ``None``: nowhere.

    Raises:
        FileNotFoundError: if there are no such files.
        ValueError: if a shard is no tar archive or compressed, there are no images, or a label is no whole number.
    """
    train, test = by_split(find_files(pattern, "shards", ".tar"))
    passed = PassedOver()
    part, class_names = _read_split(f"shards:{pattern}", train, root, passed)
    held_out = _read_split(f"shards:{pattern}", test, root, passed)[0] if test else None
    return Found(part, held_out, class_names).told(passed)


def _read_split(
    where: str, shards: Sequence[Path], root: Path | None, passed: PassedOver
) -> tuple[Listed, tuple[str, ...]]:
    tables = []
    for number, shard in enumerate(shards):
        table, kinds = _indexed(shard, root)
        tables.append(table._replace(shards=np.full(len(table.names), number)))
        passed.update(kinds)
    whole = Table(*(np.concatenate(columns) for columns in zip(*tables, strict=True)))
    if (whole.labels >= 0).any():
        labels = torch.from_numpy(whole.labels)
        return Listed(ShardImages(shards, whole), labels), tuple(map(str, range(int(labels.max()) + 1)))
    entries = _unwrapped([os.fsdecode(bytes(name)) for name in whole.names])
    # splits are what the shards' names say, and test/ is a folder as others
    listing, _, beside = arrange(where, [Entry(f"train/{entry.name}", entry.kind) for entry in entries])
    passed.update(beside)
    some = Table(*(column[listing.places] for column in whole))
    return Listed(ShardImages(shards, some), listing.labels), listing.class_names


def _indexed(shard: Path, root: Path | None) -> tuple[Table, dict[str, int]]:
    """The index of a shard: made, or as it was kept for a file of this place, size and age."""
    state = shard.stat()
    title = hashlib.sha256(f"{shard.absolute()}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()[:32]
    kept = None if root is None else root / "shards" / f"{title}.npz"
    if kept is not None and kept.is_file():
        held = np.load(kept)
        kinds = zip(held["kinds"].tolist(), held["counts"].tolist(), strict=True)
        return Table(*(held[name] for name in Table._fields)), dict(kinds)
    table, passed = _index(shard)
    if kept is not None and len(table.names) >= WORTH_KEEPING and os.access(root or "", os.W_OK):
        with atomically(kept) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **table._asdict(), kinds=list(passed), counts=list(passed.values()))
    return table, passed


def _index(shard: Path) -> tuple[Table, dict[str, int]]:
    images: list[tuple[str, str, str, int, int]] = []  # key, suffix, name, offset, size
    labels: dict[str, int] = {}
    passed = PassedOver()
    try:
        with shard.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if not member.isfile() or _is_foreign(member.name.removeprefix("./")):
                    continue
                folder, slash, base = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = base.partition(".")
                key, kind = f"{folder}{slash}{stem}", kind_of(base)
                if suffix == "cls":
                    stream.seek(member.offset_data)
                    word = stream.read(member.size).strip()
                    if not word.isdigit():
                        raise ValueError(f"{shard}/{member.name} must hold a class index, but holds {word[:20]!r}")
                    labels[key] = int(word)
                elif kind is not None:
                    passed.note(kind)
                else:
                    images.append((key, suffix, f"{folder}{slash}{base}", member.offset_data, member.size))
    except tarfile.TarError as error:
        reason = f"{error}".splitlines()[0]
        raise ValueError(f"{shard} must be a tar archive that is not compressed: {reason}") from error
    plain = {key for key, suffix, *_ in images if "." not in suffix}
    kept = [row for row in images if "." not in row[1] or row[0] not in plain]  # KEY.depth.png is no second image
    passed.note("other picture of an image", len(images) - len(kept))
    names = np.array([os.fsencode(name) for _, _, name, *_ in kept], dtype=np.bytes_)
    offsets, sizes = np.array([row[3:] for row in kept], np.int64).reshape(-1, 2).T
    known = np.array([labels.get(key, NO_LABEL) for key, *_ in kept], np.int64)
    return Table(names, np.zeros(len(names), np.int64), offsets, sizes, known), passed


def find_files(pattern: str, kind: str, suffix: str) -> list[Path]:
    """Files by a path, a folder, or a pattern of ``{000..146}``, ``{a,b}``, ``*`` and ``?``, sorted by name.

    Raises:
        FileNotFoundError: if there are none, or one that a brace promises is missing.
    """
    found: list[Path] = []
    for path in map(at_home, _expand(pattern)):
        if path.is_dir():
            some = sorted(path.rglob(f"*{suffix}"))
        elif any(sign in path.name for sign in "*?"):
            some = sorted(path.parent.glob(path.name))
        else:
            some = [path] if path.is_file() else []
        if not some:
            raise FileNotFoundError(f"{kind}:{pattern} must name files or a folder of them, but {path} is none")
        found += some
    return found


def _expand(pattern: str) -> list[str]:
    """Names that braces stand for.

    Examples:
        >>> _expand("a-{08..10}.{tar,tgz}")
        ['a-08.tar', 'a-08.tgz', 'a-09.tar', 'a-09.tgz', 'a-10.tar', 'a-10.tgz']
    """
    choices = []
    for part in re.split(r"(\{[^{}]*\})", pattern):
        span = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part)
        if span:
            choices.append([f"{n:0{len(span[1])}}" for n in range(int(span[1]), int(span[2]) + 1)])
        else:
            choices.append(part[1:-1].split(",") if part.startswith("{") else [part])
    return ["".join(parts) for parts in itertools.product(*choices)]


def by_split(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files to train and to test on, as their names or their folders' say; without the word train, all are one."""
    words = [set(re.findall(r"[a-z]+", f"{file.parent.name}/{file.name}".lower())) for file in files]
    train = [file for file, own in zip(files, words, strict=True) if "train" in own]
    test = [file for file, own in zip(files, words, strict=True) if own & TEST_WORDS and "train" not in own]
    return (train, test) if train else (list(files), [])
