"""Whether a value fits an annotation at a glance: in a microsecond, where it is what it usually is."""

import functools
import math
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import AbstractArray
from torch import Tensor, nn

NARROW = {"int2", "int4", "int8", "int16"}  # no places and labels: torch takes some of them for masks
Sizes = dict[str, tuple[int, str]]  # of axes by name: the size, and the argument that has it
Fits = Callable[[Any, Sizes], bool]


@functools.cache
def glance(hint: Any) -> Fits:
    """Make what says whether a value fits; where it says no, somebody has to look closely.

    Examples:
        >>> glance(int | None)(3, {}), glance(int | None)("3", {})
        (True, False)
    """
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _number(members[0], members[1:])
    if origin in (Union, UnionType):
        # a device by its name is looked at closely
        return _one_of(tuple(glance(one) for one in members if not (one is str and torch.device in members)))
    if origin is Literal:
        return lambda value, sizes: isinstance(value, str) and value in members
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return _tensor(hint)
    if hint in (int, float):
        return _number(hint, ())
    if origin is tuple and len(members) > 1 and members[-1] is not Ellipsis:
        return _row(tuple(map(glance, members)))
    if origin in (tuple, Sequence):
        return _all_are(glance(members[0]))
    if hint is Any:
        return lambda value, sizes: True
    return _instance(NoneType if hint is None else hint)


def _number(base: Any, limits: Sequence[Any]) -> Fits:
    if base not in (int, float):
        return lambda value, sizes: False
    low = max([getattr(limit, "ge", -math.inf) for limit in limits], default=-math.inf)
    above = max([getattr(limit, "gt", -math.inf) for limit in limits], default=-math.inf)
    high = min([getattr(limit, "le", math.inf) for limit in limits], default=math.inf)
    below = min([getattr(limit, "lt", math.inf) for limit in limits], default=math.inf)
    if not all(isinstance(limit, Ge | Gt | Le | Lt) for limit in limits):
        return lambda value, sizes: False
    kinds = (int,) if base is int else (int, float)
    return lambda value, sizes: type(value) in kinds and low <= value <= high and above < value < below


def _one_of(members: tuple[Fits, ...]) -> Fits:
    def fits(value: Any, sizes: Sizes) -> bool:
        for one in members:  # noqa: SIM110 - no generator, for this runs in every step
            if one(value, sizes):
                return True
        return False

    return fits


def _row(members: tuple[Fits, ...]) -> Fits:
    def fits(value: Any, sizes: Sizes) -> bool:
        is_row = type(value) in (tuple, list) and len(value) == len(members)
        return is_row and all(one(member, sizes) for one, member in zip(members, value, strict=True))

    return fits


def _all_are(one: Fits) -> Fits:
    return lambda value, sizes: type(value) in (tuple, list) and all(one(member, sizes) for member in value)


def _instance(kind: Any) -> Fits:
    """Of classes by ``isinstance``; of roles, which take long to ask, by the classes that were found to have them."""
    if not isinstance(kind, type) or kind is object:
        return lambda value, sizes: False
    if not getattr(kind, "_is_protocol", False):
        return lambda value, sizes: isinstance(value, kind)
    known: set[type] = set()

    def fits(value: Any, sizes: Sizes) -> bool:
        if type(value) in known:
            return True
        if getattr(kind, "_is_runtime_protocol", False) and isinstance(value, kind):
            known.add(type(value))
            return True
        return False

    return fits


@functools.cache
def axes_of(hint: Any) -> tuple[int, bool, list[tuple[int, int]], list[tuple[int, str]]]:
    """What an annotation says of axes: how many, or how many at least; sizes and names by place, from either end."""
    names = hint.dim_str.split()
    variadic = next((place for place, name in enumerate(names) if name.startswith("*") or name == "..."), len(names))
    places = [(place if place < variadic else place - len(names), name) for place, name in enumerate(names)]
    fixed = [(place, int(name)) for place, name in places if name.isdigit()]
    named = [(place, name) for place, name in places if name.isidentifier() and name != "_"]
    is_exact = variadic == len(names)
    return len(names) - (not is_exact), is_exact, fixed, named


def _tensor(hint: Any) -> Fits:
    if not issubclass(hint.array_type, Tensor):
        return lambda value, sizes: False
    words = hint.dtypes if isinstance(hint.dtypes, tuple) else ()
    kinds = {getattr(torch, word) for word in set(words) - NARROW if hasattr(torch, word)}
    least, is_exact, fixed, named = axes_of(hint)

    def fits(value: Any, sizes: Sizes) -> bool:
        if type(value) not in (Tensor, nn.Parameter) or (kinds and value.dtype not in kinds):
            return False
        shape = value.shape
        if len(shape) != least if is_exact else len(shape) < least:
            return False
        for place, size in fixed:
            if shape[place] != size:
                return False
        for place, name in named:
            size = shape[place]
            if sizes.setdefault(name, (size, sizes[""][1]))[0] != size:
                return False
        return True

    return fits
