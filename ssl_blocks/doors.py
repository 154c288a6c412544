"""What public functions and constructors take is checked once, where it comes in, by the types that they state."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import FunctionType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import AbstractArray
from torch import Tensor

from ssl_blocks.glance import NARROW, Fits, Sizes, axes_of, glance

T = TypeVar("T")
BOUNDS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {
    Ge: ("at least", "ge", lambda value, bound: value >= bound),
    Gt: ("above", "gt", lambda value, bound: value > bound),
    Le: ("at most", "le", lambda value, bound: value <= bound),
    Lt: ("below", "lt", lambda value, bound: value < bound),
}


def checked(target: T) -> T:
    """Check the arguments of a function, or of a class's constructor and public methods, against their annotations.

    Types, bounds (see `ssl_blocks.bounds`), and of tensors kind, number of axes, axes of one name, and device: all that
    is known without waiting for an accelerator. Nothing is checked while a pass is traced by ``torch.compile``. Text in
    ``Annotated[kind, "what to do"]`` is told to whoever gives another kind.

    Raises:
        TypeError: in the decorated function, if an argument is of another kind.
        ValueError: if it is out of bounds, or a tensor has another shape or device than those that go with it.

    Examples:
        >>> from ssl_blocks.bounds import Depth
        >>> @checked
        ... def build(depth: Depth) -> int:
        ...     return depth
        >>> build(0)
        Traceback (most recent call last):
        ValueError: depth=0 must be at least 1 and at most 1,000
    """
    if not isinstance(target, type):
        return _guarded(target)  # type: ignore[arg-type, return-value]
    for name, member in list(vars(target).items()):
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(member, FunctionType):
            setattr(target, name, _guarded(member))
        elif isinstance(member, classmethod | staticmethod):
            setattr(target, name, type(member)(_guarded(member.__func__)))
    return target


def check_value(name: str, value: Any, hint: Any, sizes: Sizes | None = None) -> None:
    """Check one value as the arguments of a `checked` function are: for those that come as ``**options``."""
    sizes = {} if sizes is None else sizes
    sizes[""] = (0, name)  # whose axes are noted
    problem = _problem(value, hint, sizes)
    if problem is not None:
        raise problem[0](f"{_shown(name, value, problem[1])} must be {problem[1]}")


def check_weights(name: str, x: Tensor, weight: Tensor) -> None:
    """Refuse values that cannot meet a model's weights: on another device, or of a precision that nothing casts.

    Raises:
        TypeError: naming both precisions.
        ValueError: naming both devices.
    """
    if torch.compiler.is_compiling():
        return
    if x.device != weight.device:
        raise ValueError(f"{name} on {x.device} must be on {weight.device}, where the weights are")
    if not weight.is_floating_point():
        raise TypeError(f"the weights that {name} meet are {weight.dtype}, but must be floating-point numbers")
    casts = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    is_cast = casts and torch.float64 not in (x.dtype, weight.dtype)
    if x.dtype != weight.dtype and not is_cast:
        raise TypeError(f"{name} of {x.dtype} must be {weight.dtype}, as the weights are")


_DOORS: "list[_Door]" = []


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    number = len(_DOORS)  # Dynamo traces no object of ours that lies in a closure
    _DOORS.append(_Door(function))

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            _DOORS[number].check(args, kwargs)
        return function(*args, **kwargs)

    return guarded


class _Door:
    """The parameters of a function, read when it is called for the first time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    @functools.cached_property
    def hints(self) -> dict[str, Any]:
        """Annotations by name; what cannot be read, for it is known to type checkers alone, is not checked."""
        plain = inspect.unwrap(self.function)
        try:
            return get_type_hints(plain, include_extras=True)
        except NameError:
            return {name: hint for name, hint in plain.__annotations__.items() if not isinstance(hint, str)}

    @functools.cached_property
    def spec(self) -> inspect.FullArgSpec:
        """Names of arguments by place, and of ``*args``."""
        return inspect.getfullargspec(inspect.unwrap(self.function))

    @functools.cached_property
    def fits(self) -> dict[str, Fits]:
        """What says at a glance that an argument is fine, by its name."""
        return {name: glance(hint) for name, hint in self.hints.items() if name != "return"}

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse the first argument that does not fit; a wrong number of them is Python's to refuse."""
        hints, names, fits = self.hints, self.spec.args, self.fits
        sizes: Sizes = {}
        home: list[tuple[str, Tensor]] = []
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in fits:
                sizes[""] = (0, name)  # whose axes are noted
                if not fits[name](value, sizes):
                    check_value(name, value, hints[name], sizes)
                if isinstance(value, Tensor) and value.ndim:
                    home.append((name, value))
                    if name == "images" and not len(value) and value.is_floating_point():
                        raise ValueError(f"images of shape {tuple(value.shape)} must be at least one")
        rest = self.spec.varargs
        for value in args[len(names) :] if rest in hints else ():
            check_value(str(rest), value, hints[str(rest)], sizes)
        computes = "device" not in hints and self.function.__name__ != "__init__"  # images may lie apart from labels
        for name, value in home[1:] if computes else ():
            if value.device != home[0][1].device:
                first, one = home[0]
                raise ValueError(f"{name} on {value.device} must be on {one.device}, where {first} is")


Problem = tuple[type[Exception], str]


def _problem(value: Any, hint: Any, sizes: Sizes) -> Problem | None:
    """What is wrong with a value; None: nothing."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *limits = get_args(hint)
        problem = _problem(value, base, sizes)
        if problem is not None:
            return problem[0], ": ".join([problem[1], *(limit for limit in limits if isinstance(limit, str))])
        return _out_of_bounds(value, limits, base is int)
    if origin in (Union, UnionType):
        return _none_fits(value, get_args(hint), sizes)
    if origin is Literal:
        members = get_args(hint)
        fits = any(type(value) is type(member) and value == member for member in members)
        return None if fits else (ValueError, _listed([repr(member) for member in members]))
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return _wrong_tensor(value, hint, sizes)
    if hint in (bool, int, float):
        return _wrong_number(value, hint)
    if origin in (tuple, list, Sequence) or hint in (tuple, list):
        return _wrong_members(value, hint, sizes)
    if origin is Mapping or origin is dict:
        return _wrong_items(value, hint, sizes)
    if hint is None or hint is NoneType:
        return None if value is None else (TypeError, "None")
    kind = origin or hint
    if kind is Callable or hint is Callable:
        return None if callable(value) else (TypeError, "a function")
    if not isinstance(kind, type) or kind is object:
        return None  # Any, type variables
    return _wrong_kind(value, kind)


def _wrong_kind(value: Any, kind: type) -> Problem | None:
    try:
        if kind is torch.device and isinstance(value, str):
            torch.device(value)
            return None
        fits = isinstance(value, kind)
    except RuntimeError:
        return ValueError, "a device, such as 'cpu' or 'cuda:0'"
    except TypeError:  # a protocol that cannot be asked
        return None
    name = {"str": "text"}.get(kind.__name__, kind.__name__)
    return None if fits else (TypeError, name if name == "text" else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")


def _none_fits(value: Any, members: Sequence[Any], sizes: Sizes) -> Problem | None:
    """Of several kinds one must fit; what is said is of the kind that fits but for its bounds, if there is one."""
    found = []
    for member in members:
        if member is str and torch.device in members:
            continue  # a device by its name
        own = dict(sizes)
        problem = _problem(value, member, own)
        if problem is None:
            sizes.update(own)
            return None
        found.append(problem)
    near = [problem for problem in found if problem[0] is ValueError and not problem[1].startswith(("a device", "'"))]
    words = dict.fromkeys(wanted for _, wanted in found)
    if len(near) != 1:
        return TypeError, _listed(list(words))
    return ValueError, near[0][1] + ", or None" * (NoneType in members)


def _wrong_number(value: Any, hint: type) -> Problem | None:
    if hint is bool:
        return None if isinstance(value, bool | np.bool_) else (TypeError, "True or False")
    kinds = (Integral, torch.SymInt) if hint is int else (Real, torch.SymInt, torch.SymFloat)
    if isinstance(value, bool | np.bool_) or not isinstance(value, kinds):
        return TypeError, "a whole number" if hint is int else "a number"
    if hint is float and not isinstance(value, Integral | torch.SymInt | torch.SymFloat) and not math.isfinite(value):
        return ValueError, "a finite number"
    return None


def _out_of_bounds(value: Any, limits: Iterable[Any], is_whole: bool) -> Problem | None:
    limits = [limit for limit in limits if type(limit) in BOUNDS]
    if all(BOUNDS[type(limit)][2](value, getattr(limit, BOUNDS[type(limit)][1])) for limit in limits):
        return None
    return ValueError, " and ".join(_limit_words(limit, is_whole) for limit in limits)


def _limit_words(limit: Any, is_whole: bool) -> str:
    words, attribute, _ = BOUNDS[type(limit)]
    number = getattr(limit, attribute)
    if is_whole and isinstance(limit, Gt):
        words, number = "at least", number + 1
    return f"{words} {number:,}" if abs(number) < 10**15 else f"{words} {number:g}"


def _wrong_members(value: Any, hint: Any, sizes: Sizes) -> Problem | None:
    origin, members = get_origin(hint) or hint, get_args(hint)
    fixed = members if origin is tuple and members and members[-1] is not Ellipsis else None
    words = f"{len(fixed)} values" if fixed else "several values, such as a tuple"
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        return TypeError, words
    if fixed is not None and len(fixed) != len(value):
        return ValueError, words
    for place, member in enumerate(value):
        kind = fixed[place] if fixed else (members[0] if members else Any)
        problem = _problem(member, kind, sizes)
        if problem is not None:
            begin = f"{words}: number {place}" if fixed else "several values, each"
            return problem[0], f"{begin} {problem[1]}"
    return None


def _wrong_items(value: Any, hint: Any, sizes: Sizes) -> Problem | None:
    if not isinstance(value, Mapping):
        return TypeError, "a mapping, such as a dict"
    for name, member in value.items():
        for given, kind in zip((name, member), get_args(hint), strict=False):
            problem = _problem(given, kind, dict(sizes))
            if problem is not None:
                return problem[0], f"a mapping, in which {given!r} must be {problem[1]}"
    return None


def _wrong_tensor(value: Any, hint: Any, sizes: Sizes) -> Problem | None:
    """Kind, number of axes, and sizes of axes with a name."""
    if not isinstance(value, Tensor):
        return (TypeError, "a Tensor") if issubclass(hint.array_type, Tensor) else None
    kinds = hint.dtypes
    if isinstance(kinds, tuple) and str(value.dtype).removeprefix("torch.") not in set(kinds) - NARROW:
        return TypeError, _kind_words(kinds)
    shape, (least, is_exact, fixed, named) = value.shape, axes_of(hint)
    words = ", ".join(
        name.upper() if name.isidentifier() else name.replace("*", "...") for name in hint.dim_str.split()
    )
    is_long = len(shape) == least if is_exact else len(shape) >= least
    if not is_long or any(shape[place] != size for place, size in fixed):
        return ValueError, f"of shape [{words}]"
    for place, name in named:
        want, where = sizes.setdefault(name, (shape[place], sizes[""][1]))
        if want != shape[place]:
            other = f" as in {where}" if where != sizes[""][1] else ""
            return ValueError, f"of shape [{words}], {name.upper()} = {want}{other}"
    return None


def _kind_words(kinds: Sequence[str]) -> str:
    if "float32" in kinds:
        return "floating-point numbers, such as torch.float32"
    only = next((kind for kind in ("int64", "bool") if kind in kinds), None)
    return f"torch.{only}" if only else f"of {_listed([f'torch.{kind}' for kind in kinds])}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _shown(name: str, value: Any, wanted: str) -> str:
    """The argument and what it was, in the words that fit what is wrong."""
    if isinstance(value, Tensor):
        return f"{name} of shape {tuple(value.shape)}" if wanted.startswith("of shape") else f"{name} of {value.dtype}"
    text = _short(value)
    return f"{name}={text if len(text) <= 100 else text[:97] + '...'}"


def _short(value: Any) -> str:
    """Plain values as they are written; of others what kind they are, and of tensors their shape."""
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        inner = ", ".join(map(_short, value[:10]))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    if value is None or isinstance(value, str | bytes | Real | slice | dict):
        return repr(value)
    return f"{value.__name__ if isinstance(value, type) else f'<{type(value).__name__}>'}"
