"""One run in a folder at a time."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ssl_blocks import files
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.rank import is_rank_zero
from ssl_blocks.files import open_locked

LOCK = "run.lock"


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Have a folder to oneself: ``run.lock`` tells host, process and its start, and goes when the run ends.

    A lock that a killed process left behind is taken over; so is that of another host under the same SLURM job, which
    has been started again. Of two that start in one instant one gets it. Where the system has no locks of files
    (Windows), a lock that is there counts as held, whoever left it. Only the process that writes locks, and ``None`` is
    no folder.

    Raises:
        RunStopped: if another run has it, or may have it on another host; nothing is touched. Its exit code is 2.
    """
    if folder is None or not is_rank_zero():
        yield
        return
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    file, pid, job = folder / LOCK, os.getpid(), os.environ.get("SLURM_JOB_ID")
    ours = {"host": socket.gethostname(), "pid": pid, "started": _started(pid), "job": job}
    try:
        _take(file, ours)
    except OSError:  # a full disk, say
        _leave(file, ours)
        if not was_there:
            with suppress(OSError):
                folder.rmdir()
        raise
    try:
        yield
    finally:
        _leave(file, ours)


def _take(file: Path, ours: dict[str, Any]) -> None:
    if not files.HAS_LOCKS:
        try:
            file.open("x").close()
        except FileExistsError:
            _check_free(file, file.read_text(), ours, unknown=True)
        file.write_text(json.dumps(ours))
        return
    with open_locked(file) as opened:
        opened.seek(0)
        _check_free(file, opened.read(), ours)
        opened.truncate(0)
        opened.write(json.dumps(ours))


def _leave(file: Path, ours: dict[str, Any]) -> None:
    """Remove the lock if it is ours, or of one that was killed while it wrote."""
    with suppress(OSError):
        if not files.HAS_LOCKS:
            if _read(file.read_text()) in (ours, None):
                file.unlink()
        elif file.exists():
            with open_locked(file) as opened:  # nobody may be looking at it
                opened.seek(0)
                if _read(opened.read()) in (ours, None):
                    file.unlink()


def _check_free(file: Path, text: str, ours: dict[str, Any], *, unknown: bool = False) -> None:
    holder = _read(text) or ({} if unknown else ours)
    if holder == ours or not (unknown or _may_live(holder, ours)):
        return
    where = f"process {holder.get('pid')} on {holder.get('host')}"
    ended = f"; if it has ended, delete {file}" if unknown or holder.get("host") != ours["host"] else ""
    raise RunStopped(
        f"{file.parent} is being written by another run, {where}: take another folder, or end that one{ended}",
        exit_code=2,
    )


def _may_live(holder: dict[str, Any], ours: dict[str, Any]) -> bool:
    if holder.get("host") != ours["host"]:
        return holder.get("job") is None or holder["job"] != ours["job"]
    pid = holder.get("pid")
    return isinstance(pid, int) and _started(pid) is not None and _started(pid) == holder.get("started")


def _started(pid: int) -> str | None:
    """When a process began, as the system counts; ``None``: there is none."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    if os.name == "nt":  # where asking for a process would end it
        return "unknown"
    try:  # without /proc, that it is there has to do
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def _read(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None  # cut short: its process was killed while it wrote
    return found if isinstance(found, dict) else None
