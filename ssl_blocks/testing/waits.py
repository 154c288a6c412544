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
from torch.utils._pytree import tree_leaves

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
        step(*there)
        with _Copies(), _CopiesOfPython():  # type: ignore[no-untyped-call]
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


class _Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations on tensors of the host and of the device, and writing through a mask."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(value) if isinstance(x, Tensor)] for value in ((args, kwargs), found))
        if any(x.device.type == "cpu" for x in given) and any(x.is_meta for x in (*given, *made)):
            _fail_here("a copy from the host", f"{func} of a tensor on the CPU")
        if func in _WRITING and args[2].numel() > 1 and any(x is not None and x.dtype == torch.bool for x in args[1]):
            _fail_here("a read of its values", f"{func} through a mask")
        return found
