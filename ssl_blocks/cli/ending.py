"""How commands end where nobody planned it: signals, too little memory, closed pipes, terminals of few letters."""

import codecs
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec

from ssl_blocks.engine.errors import Interruption, RunStopped, from_outside
from ssl_blocks.engine.rank import ProcessesError, is_rank_zero

P = ParamSpec("P")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LETTERS = {"±": "+-", "×": "x", "…": "...", "–": "-"}  # in words of ours, for terminals that know ASCII alone


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    letter = error.object[error.start]
    return (LETTERS[letter], error.start + 1) if letter in LETTERS else codecs.backslashreplace_errors(error)


codecs.register_error("ssl_blocks.plainly", _plainly)


def fail(reason: Exception, exit_code: int) -> int:
    """Tell a mistake in one line on standard error, whichever process it is in, and return the exit code."""
    # the end of a run has been told by the process that met it
    if is_rank_zero() or not isinstance(reason, RunStopped):
        where = "error" if is_rank_zero() or isinstance(reason, ProcessesError) else "error in another process"
        print(f"{where}: {' '.join(str(reason).split())}", file=sys.stderr, flush=True)
    return exit_code


def ending_in_a_line(left: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Make a command's ``main`` end in one line and an exit code: on SIGTERM, Ctrl-C, or too little memory.

    Where nobody reads its output any more (``| head -1``) it goes on without; where output cannot be written for
    another reason it goes on, too, and its exit code is 1. Letters that the terminal does not know are written plainly.
    ``left`` is what is said of files after a signal.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @wraps(main)
        def inner(*args: P.args, **kwargs: P.kwargs) -> int:
            with _patient("stdout") as out, _patient("stderr"), _raising_signals():
                try:
                    code = main(*args, **kwargs)
                except KeyboardInterrupt as stop:
                    number = stop.number if isinstance(stop, Interruption) else signal.SIGINT
                    code = fail(RunStopped(f"stopped by {signal.Signals(number).name}; {left}"), 128 + number)
                except (MemoryError, RuntimeError) as error:
                    if (reason := from_outside(error)) is None:
                        raise
                    code = fail(RunStopped(reason), 1)
                out.flush()
                if out.trouble and not code:
                    code = fail(OSError(f"standard output could not be written ({out.trouble})"), 1)
            return code

        return inner

    return decorate


class _Patient:
    """A stream of text that drops what cannot be written."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.trouble = stream, ""

    def write(self, text: str) -> int:
        """Write, or drop."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is waiting, or drop it."""
        self._try(self.stream.flush)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.trouble = error.strerror or str(error)
            with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())  # for what waits in it, too

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def _patient(name: str) -> Iterator[_Patient]:
    before = getattr(sys, name)
    if isinstance(before, _Patient):
        yield before
        return
    stream, errors = _Patient(before), getattr(before, "errors", None)
    can = errors is not None and hasattr(before, "reconfigure")
    if can:
        before.reconfigure(errors="ssl_blocks.plainly")
    setattr(sys, name, stream)
    try:
        yield stream
    finally:
        stream.flush()
        setattr(sys, name, before)
        if can:
            before.reconfigure(errors=errors)


@contextmanager
def _raising_signals() -> Iterator[None]:
    """Have signals raise `Interruption`, unless they are ignored; training answers them after a step instead."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, before = os.getpid(), {number: signal.getsignal(number) for number in SIGNALS}

    def receive(number: int, frame: FrameType | None) -> None:
        if os.getpid() == ours:
            raise Interruption(number)
        if number == signal.SIGTERM:  # a process that was forked off, and has no more to say
            os._exit(128 + number)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
