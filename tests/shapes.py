"""Types and shapes in signatures, checked in every call while tests run.

jaxtyping's import hook, which pyproject.toml sets up, decorates all functions to compare their axes. Most name none,
and keeping books of axes takes many times as long as a look at types, so these get the look alone.
"""

import inspect
import random
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype._check.code import codemain

with_axes = jaxtyping.jaxtyped
with_types = beartype(conf=BeartypeConf(violation_type=TypeError))  # as jaxtyping's is


def names_axes(function: Callable[..., Any]) -> bool:
    """Whether a signature has shapes, or text that might mean some."""
    return any(isinstance(hint, str) or "jaxtyping." in repr(hint) for hint in function.__annotations__.values())


def checked(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What the import hook puts in front of functions and classes."""

    def decorate(part: Any) -> Any:
        plain = inspect.isfunction(part) and not names_axes(part)
        return with_types(part) if plain else with_axes(part, typechecker=typechecker)

    return decorate


# looks at one member of a list, drawn by itself: nothing else may notice that types are checked
codemain.getrandbits = random.Random(0).getrandbits
jaxtyping.jaxtyped = checked
