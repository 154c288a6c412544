"""Why a run ended early."""


class RunStopped(Exception):  # noqa: N818 - a request to stop is no error
    """A run that ended before its time, in order; its message says why, where, and how to go on.

    Args:
        message: one line.
        exit_code: of the process.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
