"""Noise that is drawn before it is needed: what needs it becomes a pure function, which compiles into one graph."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

T = TypeVar("T")
_Call = tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]


class Pure(Generic[T]):
    """A function that draws, such as an augmentation or the ``draw`` of an objective, as a function of its noise.

    ``torch.compile`` cannot follow a generator. Noise is drawn in the order and by the calls of the function itself, so
    a generator gives the same bits either way. Parts are written as ever: ``torch.rand(..., generator=generator)``.

    Args:
        function: takes ``generator=``; what shapes it draws depends on the shapes of its arguments alone.

    Examples:
        >>> def blurred(x, *, generator=None):
        ...     return x + torch.rand(x.shape, generator=generator)
        >>> pure, x = Pure(blurred), torch.zeros(2)
        >>> noise = pure.noise(x, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(pure(noise, x), blurred(x, generator=torch.Generator().manual_seed(0)))
        True
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self.function = function
        self._calls: dict[Any, list[_Call]] = {}

    def compile(self, **options: Any) -> Callable[..., T]:
        """`__call__`, compiled by ``torch.compile`` with these options."""
        if torch.__version__ < "2.12":  # let it hand draws to modes, too, as later versions do
            from torch._dynamo.variables.torch import get_overridable_functions  # slow to load

            get_overridable_functions().update({torch.rand, torch.randn, torch.randint, torch.randperm})
        compiled: Callable[..., T] = torch.compile(self.__call__, **options)
        return compiled

    def noise(self, *args: Any, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw all that ``function(*args, generator=generator)`` would draw.

        What that is, is found out by calling it once for all arguments of the same shapes.

        Raises:
            ValueError: if it draws by a method that changes a tensor, or from probabilities in one.
        """
        key = _shapes(args)
        if key not in self._calls:
            calls: list[_Call] = []
            with _Noted(calls), torch.no_grad():
                self.function(*args, generator=torch.Generator(generator.device))
            self._calls[key] = calls
        return tuple(draw(*given, **options, generator=generator) for draw, given, options in self._calls[key])

    def __call__(self, noise: tuple[Tensor, ...], *args: Any) -> T:
        """Call the function, which gets this noise in place of draws.

        Raises:
            ValueError: if it asks for another number of draws.
        """
        left = list(noise)
        with _Played(left):
            found = self.function(*args)
        if left:
            raise ValueError(f"noise holds {len(noise)} draws, of which {len(left)} were not asked for")
        return found


class _Noted(TorchFunctionMode):
    """Writes down every call that takes a generator."""

    def __init__(self, calls: list[_Call]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if "generator" in kwargs:
            if any(isinstance(value, Tensor) for value in args):
                name = getattr(func, "__name__", func)
                raise ValueError(
                    f"{name} draws into or from a tensor: only torch.rand and the like can be drawn before"
                )
            self.calls.append((func, args, {name: value for name, value in kwargs.items() if name != "generator"}))
        return func(*args, **kwargs)


class _Played(TorchFunctionMode):
    """Hands out what was drawn before."""

    def __init__(self, noise: list[Tensor]) -> None:
        super().__init__()
        self.noise = noise  # a list: Dynamo does not follow other state of a mode

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if "generator" not in kwargs:
            return func(*args, **kwargs)
        if not self.noise:
            raise ValueError("noise holds fewer draws than are asked for")
        return self.noise.pop(0)


def _shapes(value: Any) -> Any:
    """What draws may depend on: shapes and devices of tensors, and all else as it is."""
    if isinstance(value, Tensor):
        return value.shape, value.device
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(_shapes(getattr(value, field.name)) for field in fields(value))
    return tuple(map(_shapes, value)) if isinstance(value, tuple | list) else value
