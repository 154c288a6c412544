"""Modes of modules and of torch, for a while."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn


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


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """Leave autocast on the device of a tensor; the meta device knows none."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
