"""One run in a folder at a time."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.rank import is_rank_zero

LOCK = "run.lock"


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Have a folder to oneself: ``run.lock`` tells host, process and its start, and goes when the run ends.

    A lock that a killed process left behind is taken over; so is that of another host under the same SLURM job, which
    has been started again. Only the process that writes locks, and ``None`` is no folder.

    Raises:
        RunStopped: if another run has it, or may have it on another host; nothing is touched. Its exit code is 2.
    """
    if folder is None or not is_rank_zero():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    file, ours = folder / LOCK, _describe(os.getpid())
    _take(file, ours)
    try:
        yield
    finally:
        with suppress(OSError):
            if _read(file.read_text()) == ours:
                file.unlink()


def _take(file: Path, ours: dict[str, Any]) -> None:
    with open(file, "a+") as opened:
        with suppress(OSError):  # some network file systems have none; then two starts in one instant are not told
            fcntl.flock(opened, fcntl.LOCK_EX)
        opened.seek(0)
        holder = _read(opened.read())
        if holder is not None and holder != ours and _may_live(holder, ours):
            where = f"process {holder.get('pid')} on {holder.get('host')}"
            ended = f"; if it has ended, delete {file}" if holder.get("host") != ours["host"] else ""
            raise RunStopped(
                f"{file.parent} is being written by another run, {where}: take another folder, or end that one{ended}",
                exit_code=2,
            )
        opened.truncate(0)
        opened.write(json.dumps(ours))


def _describe(pid: int) -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID")
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid), "job": job}


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
