"""Why a run ended early."""

import re

LOST_PEER = re.compile(
    r"Connection (closed|reset) by peer|gloo|NCCL|Socket Timeout|Broken pipe|heartbeat|store->get|recvValue", re.I
)
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory", re.I)


class RunStopped(Exception):  # noqa: N818 - a request to stop is no error
    """A run that ended before its time, in order; its message says in one line why, where, and how to go on."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interruption(KeyboardInterrupt):
    """A signal that came outside training: no `Exception`, so that nothing takes it for a failure of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def from_outside(error: BaseException) -> str | None:
    """What happened to a process, in a line, where its surroundings did it; ``None``: that is not known.

    Examples:
        >>> from_outside(MemoryError())
        'memory did not suffice: smaller batches, data.storage=stream or fewer data.workers need less'
        >>> from_outside(RuntimeError("a mistake")) is None
        True
    """
    text = " ".join(str(error).split())[:300]
    said = f" ({text})" if text else ""
    lost_worker = isinstance(error, RuntimeError) and "DataLoader worker" in text
    if lost_worker or isinstance(error, ConnectionError):  # pipes to these are all that this process connects to
        return f"a process that loads images was lost{said}; data.workers=0 does without"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError | OSError) and NO_MEMORY.search(text)):
        return f"memory did not suffice{said}: smaller batches, data.storage=stream or fewer data.workers need less"
    if isinstance(error, RuntimeError) and LOST_PEER.search(text):
        return f"another process of the run was lost{said}"
    return f"a file could not be written or read: {error}" if isinstance(error, OSError) else None
