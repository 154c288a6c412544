"""Training and evaluation mode, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(model: nn.Module, *, training: bool | None = None) -> Iterator[None]:
    """Put every module back into its own mode afterwards: a part may be frozen, and the rest not.

    Args:
        model: whose modules.
        training: mode meanwhile; ``None`` leaves it to the caller.

    Examples:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with modes_kept(model, training=False):
        ...     _ = [part.training for part in model]
        >>> [part.training for part in model]
        [True, False]
    """
    modes = [(part, part.training) for part in model.modules()]
    if training is not None:
        model.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
