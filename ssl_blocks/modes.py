"""Modes of modules and of torch, for a while."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FILLS = {f"{name}_" for name in ("add", "clamp", "copy", "erfinv", "fill", "mul", "normal", "uniform", "zero")}


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
def buffers_kept(model: nn.Module | list[Tensor]) -> Iterator[None]:
    """Give every buffer its values back afterwards: what is only tried or looked at must leave no trace.

    Args:
        model: whose buffers; or the buffers, where they are asked for often.

    Examples:
        >>> norm = nn.BatchNorm1d(2)
        >>> with buffers_kept(norm):
        ...     _ = norm(torch.ones(4, 2))
        >>> norm.running_mean
        tensor([0., 0.])
    """
    buffers = model.buffers() if isinstance(model, nn.Module) else model
    before = [(buffer, buffer.detach().clone()) for buffer in buffers]
    try:
        yield
    finally:
        for buffer, was in before:
            buffer.data.copy_(was)  # past autograd: a graph may need the buffer, which is what it was


@contextmanager
def without_weights() -> Iterator[None]:
    """Build modules on the meta device: they have shapes and no values, and nothing is drawn or computed for them.

    Initial weights are not even worked out in theory, which takes torch longer than drawing them.

    Examples:
        >>> with without_weights():
        ...     layer = nn.Linear(2, 3)
        >>> layer.weight.is_meta
        True
    """
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Leave out what fills tensors that hold nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fills = args and isinstance(args[0], Tensor) and args[0].is_meta and getattr(func, "__name__", "") in FILLS
        return args[0] if fills else func(*args, **kwargs or {})


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """Leave autocast on the device of a tensor; the meta device knows none."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
