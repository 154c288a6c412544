"""Types and shapes in signatures, checked in every call while tests run.

jaxtyping's import hook, which pyproject.toml sets up, decorates all functions to compare their axes. Most name none,
and keeping books of axes takes many times as long as a look at types, so these get the look alone. Where axes are
named, they are compared once for every object and every kind of arguments: a model that is called a hundred times on
images of one shape is looked at once.
"""

import dataclasses
import functools
import inspect
import random
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from beartype._check.code import codemain
from torch import Tensor

with_axes = jaxtyping.jaxtyped
with_types = beartype(conf=BeartypeConf(violation_type=TypeError))  # as jaxtyping's is


def names_axes(function: Callable[..., Any]) -> bool:
    """Whether a signature has shapes, or text that might mean some."""
    return any(isinstance(hint, str) or "jaxtyping." in repr(hint) for hint in function.__annotations__.values())


PLAIN = {bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size}


def kind_of(value: Any) -> Any:
    """All of a value that shapes could depend on; an object is the same as itself alone.

    Raises:
        TypeError: where nobody can tell.
    """
    kind = type(value)
    if isinstance(value, Tensor):
        return value.dtype, value.shape
    if kind in PLAIN:
        return kind, value
    if kind is slice:
        return kind, value.start, value.stop, value.step
    if kind is tuple or kind is list:
        return kind, *map(kind_of, value)
    if dataclasses.is_dataclass(value):
        return kind, *map(kind_of, vars(value).values())
    return kind if kind is torch.Generator else ref(value)


def once_per_kind(plain: Callable[..., Any], looking: Callable[..., Any]) -> Callable[..., Any]:
    """Call ``looking`` for what was not seen before, else ``plain``."""
    of_owner: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()
    of_none: set[Any] = set()

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            is_owned = bool(args) and type(args[0]).__hash__ is object.__hash__
            seen = of_owner.setdefault(args[0], set()) if is_owned else of_none
            kind = (*map(kind_of, args[is_owned:]), *kwargs, *map(kind_of, kwargs.values()))
            is_known = kind in seen
        except TypeError:
            return looking(*args, **kwargs)
        if is_known:
            return plain(*args, **kwargs)
        found = looking(*args, **kwargs)
        seen.add(kind)
        return found

    return call


def checked(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What the import hook puts in front of functions and classes."""

    def decorate(part: Any) -> Any:
        if inspect.isfunction(part) and not names_axes(part):
            return with_types(part)
        looking = with_axes(part, typechecker=typechecker)
        return once_per_kind(part, looking) if inspect.isfunction(part) else looking

    return decorate


# looks at one member of a list, drawn by itself: nothing else may notice that types are checked
codemain.getrandbits = random.Random(0).getrandbits
jaxtyping.jaxtyped = checked
