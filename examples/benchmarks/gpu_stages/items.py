"""A stage runs items until its time is over, and each leaves a line. Loads no torch."""

import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from examples.benchmarks.gpu_stages.report import append, values

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a stage is told.

    Args:
        budget: seconds.
        out: folder for results.
        data: folder with ``train`` and ``test``, for the recipe.
        device: ``"cuda"`` or ``"cpu"``.
        tiny: small sizes, few cases, no compiler behind ``torch.compile``.
    """

    budget: float
    out: Path
    data: Path
    device: str
    tiny: bool

    def with_budget(self, seconds: float) -> "Settings":
        """The same with other time."""
        return replace(self, budget=seconds)


class OutOfTime(BaseException):
    """An item's time is over. Compilers catch every ``Exception``."""


class Stage:
    """Runs items, notes what they find, and goes on where one fails.

    Args:
        name: of the stage.
        settings: time, device and folders.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings, self.started = name, settings, time.monotonic()
        self.tiny, self.device, self.cuda = settings.tiny, settings.device, settings.device == "cuda"

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.settings.budget - (time.monotonic() - self.started)

    def note(self, item: str, **found: Any) -> None:
        """Write a line and print it."""
        elapsed = round(time.monotonic() - self.started, 1)
        append(self.settings.out, {"stage": self.name, "item": item, **found, "t": elapsed})
        print(f"[{elapsed:6.1f}] {item:58s} {values(found)}", flush=True)

    def run(
        self, item: str, function: Callable[[], Found], *, needs: float = 1.0, most: float | None = None
    ) -> Found | None:
        """Do an item and note what it found, or why it found nothing.

        Args:
            item: its name.
            function: returns what is to be noted.
            needs: seconds below which it is not begun; a thirtieth of them where all is tiny.
            most: seconds after which it is broken off; ``None``: all that are left.

        Returns:
            What it found; ``None`` if it was skipped, took too long or failed.
        """
        if self.left < (needs / 30 if self.tiny else needs):
            self.note(item, skipped=f"{self.left:.0f} s left, needs {needs:g}")
            return None
        limit = self.left if most is None or self.tiny else min(most, self.left)
        try:
            with _alarm(limit):
                found = function()
        except OutOfTime:
            self.note(item, error=f"took more than {limit:.0f} s")
        except Exception as error:
            self.note(item, error=_describe(error))
            if self.cuda and "CUDA error" in str(error):  # it stays: nothing else would work in this process
                sys.exit(3)
        else:
            self.note(item, **found)
            return found
        return None


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _describe(error: Exception) -> str:
    """Type, first line, and the place in our own code that is nearest to the cause."""
    text = next(iter(str(error).splitlines()), "")[:200]
    return f"{type(error).__name__}: {text} {place(traceback.extract_tb(error.__traceback__))}".rstrip()


def place(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of a stack that is the library's, else an example's."""
    for folder in ("ssl_blocks/", "examples/"):
        for frame in reversed(frames):
            if folder in frame.filename:
                return f"{folder}{frame.filename.split(folder)[-1]}:{frame.lineno}"
    return ""
