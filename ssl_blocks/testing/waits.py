"""Finding what makes an accelerator wait, without one."""

import copy
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_blocks.testing.role_case import Role, mapped

_MAKING = ("tensor", "as_tensor", "asarray", "new_tensor")
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
_WRITING = (torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class WaitError(AssertionError):
    """An accelerator would have to wait."""


def assert_no_wait(step: Callable[..., object], *args: Any) -> None:
    """Prove that a step neither reads values of its device nor copies values of Python to it.

    An accelerator is waited for in both cases, and a CUDA graph cannot hold either: ``float(x)``, ``if x.any()``,
    ``x[mask]``, ``torch.tensor(values, device=...)``, ``x[:, [1, 0]]``. The step runs on the meta device, where there
    is no data to read, in copies of its arguments: once, for what is made but once, and once more under watch. Draws
    come from torch's default generator.

    Args:
        step: called as ``step(*args)``; what it works on must be among its arguments.
        *args: tensors, modules, values made of tensors such as `Views`, and anything else, which is given as it is.

    Raises:
        WaitError: naming the first operation for which an accelerator would wait, and its line.

    Examples:
        >>> assert_no_wait(torch.sum, torch.ones(2))
        >>> assert_no_wait(lambda x: x[x > 0], torch.ones(2))
        Traceback (most recent call last):
        ...
        ssl_blocks.testing.waits.WaitError: expected no wait for the device, got a read of its values: ...
    """
    there = _on_meta(args)
    try:
        with _Copies(watched=False):
            step(*there)
        with _Copies(watched=True), _CopiesOfPython():
            step(*there)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = re.split(r"[.,;!]?\s*\n|[.,;!] ", str(error))[0]
        if "meta" not in reason.lower():
            raise
        what = "a tensor of the host" if "expected device" in reason else "a read of its values"
        _fail(what, traceback.walk_tb(error.__traceback__), reason)


def check_waits(role: Role, step: Callable[..., object], *args: Any) -> None:
    """Have a check of a role fail where `assert_no_wait` does."""
    try:
        assert_no_wait(step, *args)
    except WaitError as error:
        expected, _, got = str(error).removeprefix("expected ").partition(", got ")
        role.fail(expected, got)


def _on_meta(args: tuple[Any, ...]) -> list[Any]:
    modules = [value for value in args if isinstance(value, nn.Module)]
    copies = [module.to("meta") for module in copy.deepcopy(modules)]  # together, for one may hold parts of another
    return [copies.pop(0) if isinstance(value, nn.Module) else mapped(value, lambda x: x.to("meta")) for value in args]


def _fail(what: str, frames: Iterable[tuple[FrameType, int]], reason: str) -> NoReturn:
    """Name the innermost line that is no library's."""
    lines = [
        f"{Path(frame.f_code.co_filename).name}:{line} ({frame.f_code.co_name})"
        for frame, line in frames
        if not any(part in frame.f_code.co_filename for part in ("site-packages", "<", __file__))
    ]
    raise WaitError(f"expected no wait for the device, got {what}: {reason}{f' in {lines[-1]}' if lines else ''}")


def _fail_here(what: str, reason: str) -> NoReturn:
    _fail(what, reversed(list(traceback.walk_stack(inspect.currentframe()))), reason)


class _CopiesOfPython(TorchFunctionMode):
    """Refuses tensors made of Python's values, and lists as indices."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        data = (*(args[1:] if name == "new_tensor" else args), *(kwargs or {}).values())
        if name in _MAKING and isinstance(found, Tensor) and found.is_meta and not isinstance(data[0], Tensor):
            _fail_here("a copy from the host", f"{name} of Python's values (see ssl_blocks.constants)")
        if func in _INDEXING and args[0].is_meta and _holds_list(args[1]):
            _fail_here("a copy from the host", "a list as an index")
        return found


def _holds_list(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(part, Sequence) or (hasattr(part, "__array__") and not isinstance(part, Tensor)) for part in parts
    )


_MADE: dict[Any, Any] = {}  # what operations made, by all that it follows from


class _Copies(TorchDispatchMode):
    """Refuses operations on tensors of the host and of the device, and writing through a mask.

    On meta, torch works out in Python what an operation makes, which is slow. So it is kept, for all steps to come.
    """

    def __init__(self, *, watched: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched = watched

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = tuple((kwargs or {}).items())
        key = func, torch.get_default_dtype(), _described(args), _described(named)
        if key in _MADE:
            return mapped(_MADE[key], _anew)
        found = func(*args, **dict(named))
        given = _tensors((args, named))
        on_meta = [x.is_meta for x in (*given, *_tensors(found))]
        makes_alone = not func._schema.is_mutable and not any(x.alias_info for x in func._schema.returns)
        if on_meta and all(on_meta) and makes_alone and func not in _WRITING:  # those are looked at every time
            _MADE[key] = mapped(found, _anew)
        if self.watched and any(on_meta) and any(x.device.type == "cpu" for x in given):
            _fail_here("a copy from the host", f"{func} of a tensor on the CPU")
        writes_much = self.watched and func in _WRITING and args[2].numel() > 1
        if writes_much and any(x.dtype == torch.bool for x in _tensors(args[1])):
            _fail_here("a read of its values", f"{func} through a mask")
        return found


def _tensors(value: Any) -> list[Tensor]:
    parts = value if isinstance(value, tuple | list) else ()
    return [value] if isinstance(value, Tensor) else [x for part in parts for x in _tensors(part)]


def _described(value: Any) -> Any:
    """All that shapes can follow from; numbers of other types make other types."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return tuple(map(_described, value)) if isinstance(value, tuple | list) else (type(value), value)


def _anew(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
