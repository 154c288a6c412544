"""Files that are written whole or not at all."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
HAS_LOCKS = fcntl is not None

TEMPORARY_SUFFIX = ".tmp"


def at_home(path: str | Path) -> Path:
    """A path with the home folder in place of a ``~`` at its beginning, as a shell has it.

    Raises:
        ValueError: if it is the home of a user (``~name``) whom the system does not know.

    Examples:
        >>> at_home("~/runs") == Path.home() / "runs"
        True
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path} begins with the home of a user whom this system does not know") from None


@contextmanager
def atomically(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what was written there takes its place once all went well.

    The file is on disk before it gets its name, so a killed process or a power cut leaves the old file or the
    new one, never half of one. Folders are made as needed.

    Examples:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "notes" / "a.txt"
        >>> with atomically(target) as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> target.read_text()
        'all of it'
    """
    path = at_home(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: Path) -> None:
    """Refuse as a place for a new or rewritten file a link, a device, a folder, and what lies below a file.

    Raises:
        ValueError: naming the path and what it is.

    Examples:
        >>> check_output(Path("/dev/null"))
        Traceback (most recent call last):
        ...
        ValueError: /dev/null is a device: give the path of a file
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link, which is not followed: give the path of the file itself")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'device'}: give the path of a file")
    there = next(parent for parent in path.absolute().parents if parent.exists() or parent.is_symlink())
    if not there.is_dir():
        raise ValueError(f"{path} cannot be made, for {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be made, for {there} may not be written")


@contextmanager
def alone_with(path: Path, *, patience: float = 60.0) -> Iterator[None]:
    """Have a file to oneself among processes that ask so, to read it and write it anew: others wait.

    Where the system has no locks of its own (Windows), a file beside it is the lock, and one that a killed process left
    there is told after ``patience`` seconds by an ``OSError``.
    """
    lock, until = path.with_name(f".{path.name}.lock"), time.monotonic() + patience
    while not HAS_LOCKS:
        try:
            lock.open("x").close()
            break
        except FileExistsError:
            if time.monotonic() > until:
                raise OSError(f"{lock} is in the way: delete it, if nobody is writing {path.name}") from None
            time.sleep(0.05)
    with open_locked(lock) if HAS_LOCKS else nullcontext():
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def open_locked(path: Path) -> Iterator[IO[str]]:
    """Open a file, made as needed, while no other process has it open so; whoever has it may remove it.

    Some network file systems know no such locks; then nobody waits.
    """
    while True:
        with open(path, "a+") as opened:
            with suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_EX)
            try:
                is_there = os.path.samestat(os.fstat(opened.fileno()), os.stat(path))
            except FileNotFoundError:
                is_there = False
            if is_there:  # else another process has removed it meanwhile
                yield opened
                return


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold names and values; ``ValueError`` naming the file and what is wrong in it."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold names and values, got {type(values).__name__}")
    return values
