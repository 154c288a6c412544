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


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Give every buffer its values back afterwards: what is only tried or looked at must leave no trace.

    Examples:
        >>> norm = nn.BatchNorm1d(2)
        >>> with buffers_kept(norm):
        ...     _ = norm(torch.ones(4, 2))
        >>> norm.running_mean
        tensor([0., 0.])
    """
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, was in before:
            buffer.data.copy_(was)  # past autograd: a graph may need the buffer, which is what it was


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """Leave autocast on the device of a tensor; the meta device knows none."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
