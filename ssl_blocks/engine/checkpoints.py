"""Checkpoints of a run, read without running anything out of them."""

import re
from pathlib import Path
from typing import Any

import torch

FORMAT_VERSION = 2
MARK = "ssl_blocks"
_NAME = re.compile(r"step-(\d{8,})\.ckpt")


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimizer steps lies."""
    return run / "checkpoints" / f"step-{step:08d}.ckpt"


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    found = {path: match for path in (run / "checkpoints").glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))}
    return sorted(found, key=lambda path: int(found[path][1]), reverse=True)


def last_good(run: Path | None) -> str:
    """Say which checkpoint is there to go on from."""
    good = None if run is None else next(iter(list_checkpoints(run)), None)
    return "there is no checkpoint yet" if good is None else f"the last good checkpoint is {good}"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint into mapped memory, tensors and plain values only; ``ValueError`` if damaged or not ours."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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
    """Read a checkpoint, or refuse it by a ``ValueError`` that offers the newest good one before it."""
    try:
        return read_checkpoint(path)
    except ValueError as refusal:
        others = list_checkpoints(path.parent.parent)
        older = others[others.index(path) + 1 :] if path in others else others
        for candidate in older:
            try:
                read_checkpoint(candidate)
            except ValueError:
                continue
            raise ValueError(f"{refusal}; the previous good one is {candidate}: give it with --resume") from None
        raise ValueError(f"{refusal}; there is no other good one") from None
