"""Checkpoints of a run: written with a checksum, read without running anything out of them."""

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

FORMAT_VERSION = 2
MARK = "ssl_blocks"
NEEDED = ("state_dict", "optimizer_states", "loops")  # of what Lightning writes
_CHECKED = b"ssl_blocks blake2b "  # before the checksum, in the comment that ends a file of torch's, which is a zip
_DIGEST_BYTES = 32
_NAME = re.compile(r"step-(\d{8,})\.ckpt")


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimizer steps lies."""
    return run / "checkpoints" / f"step-{step:08d}.ckpt"


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    found = {path: match for path in (run / "checkpoints").glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))}
    return sorted(found, key=lambda path: int(found[path][1]), reverse=True)


def last_good(run: Path | None) -> str:
    """Say which checkpoint is there to go on from, having read it."""
    there = [] if run is None else list_checkpoints(run)
    good = next(filter(is_good, there), None)
    if good is None:
        return f"none of the {len(there)} checkpoints is good" if there else "there is no checkpoint yet"
    later = there[: there.index(good)]
    return f"the last good checkpoint is {good}{f', for {later[0].name} is damaged' if later else ''}"


def write_checkpoint(content: Any, path: Path) -> None:
    """Write what `read_checkpoint` reads, and a checksum over all of it."""
    with open(path, "wb") as file:  # Python's own file: its errors say what the system said
        checked = _Checked(file)
        torch.save(content, cast(BinaryIO, checked))
        comment = _CHECKED + checked.hash.digest()
        file.seek(-2, 2)  # the length of the comment, 0 so far
        file.write(len(comment).to_bytes(2, "little") + comment)


class _Checked:
    """A file that is written from front to back, and the hash of what went into it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def verify_checkpoint(path: Path) -> None:
    """Read the whole file once and compare it with its checksum; ``ValueError`` if a bit is another one."""
    found, length = hashlib.blake2b(digest_size=_DIGEST_BYTES), len(_CHECKED) + _DIGEST_BYTES
    try:
        with open(path, "rb") as file:
            left = max(0, file.seek(0, 2) - length - 2)
            file.seek(0)
            while left and (part := file.read(min(left, 2**20))):
                found.update(part)
                left -= len(part)
            end = file.read()
    except OSError as error:
        raise ValueError(f"{path} could not be read ({error.strerror})") from None
    found.update(b"\0\0")  # what the length was when the checksum was taken
    if end != length.to_bytes(2, "little") + _CHECKED + found.digest():
        what = "its bytes are not those that were written" if _CHECKED in end else "no checksum is at its end"
        raise ValueError(f"{path} is damaged or no checkpoint ({what})")


def read_checkpoint(path: Path, *, mapped: bool = True) -> dict[str, Any]:
    """Read a checkpoint into mapped memory, tensors and plain values only; ``ValueError`` if damaged or not ours."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises whatever the damage makes its reader stumble over
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is damaged or no checkpoint ({reason[:120]})") from None
    mark = content.get(MARK) if isinstance(content, dict) else None
    if not isinstance(mark, dict):
        raise ValueError(f"{path} is not a checkpoint of an ssl_blocks run")
    if mark.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has checkpoint format {mark.get('format_version')!r}; this version reads {FORMAT_VERSION}"
        )
    return dict(content)


def check_checkpoint(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint, or refuse it by a ``ValueError`` that offers the newest good one before it."""
    try:
        return _verified(path)
    except ValueError as refusal:
        others = list_checkpoints(path.parent.parent)
        older = others[others.index(path) + 1 :] if path in others else others
        candidate = next(filter(is_good, older), None)
        if candidate is None:
            raise ValueError(f"{refusal}; there is no other good one") from None
        raise ValueError(f"{refusal}; the previous good one is {candidate}: give it with --resume") from None


def is_good(path: Path) -> bool:
    """Whether a checkpoint is whole, ours, and all its numbers are finite."""
    try:
        _verified(path)
    except ValueError:
        return False
    return True


def _verified(path: Path) -> dict[str, Any]:
    verify_checkpoint(path)
    content = read_checkpoint(path)
    missing = [name for name in NEEDED if not content.get(name)]
    missing += [f"{MARK}.{name}" for name in ("step", "seconds", "losses", "facts") if name not in content[MARK]]
    if missing:
        raise ValueError(
            f"{path} cannot be gone on from: {', '.join(missing)} {'are' if missing[1:] else 'is'} not in it"
        )
    known = set(content[MARK].get("not_finite", ()))
    bad = [name for name, value in numbers_of(content).items() if name not in known and not value.isfinite().all()]
    if bad:
        raise ValueError(f"{path} cannot be gone on from: {bad[0]} is not finite ({len(bad)} such)")
    return content


def numbers_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights and what the optimizer remembers, of a checkpoint or of a state alone: what is to be finite, by name."""
    found = dict(content.get("state_dict", {} if "optimizer_states" in content else content))
    for state in content.get("optimizer_states", ()):
        for place, values in state.get("state", {}).items():  # the first process alone has those of shards
            found |= {f"{name} of the optimizer's parameter {place}": value for name, value in values.items()}
    return {name: x for name, x in found.items() if isinstance(x, Tensor) and x.is_floating_point()}


def differing_facts(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What a run depends on and is not as its checkpoint has it, each with both values.

    Examples:
        >>> differing_facts({"images": 60, "mean": [0.5]}, {"images": 180, "mean": [0.5000001]})
        ['images=60 (the run has 180)']
    """
    return [
        f"{name}={ours.get(name)!r} (the run has {theirs.get(name)!r})"
        for name in {**ours, **theirs}
        if not _same(ours.get(name), theirs.get(name))
    ]


def _same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal, numbers but for rounding: sums differ from machine to machine."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-5)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
