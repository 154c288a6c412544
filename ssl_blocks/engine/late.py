"""What is read off a GPU without making it wait: copied when it is due, used later."""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

Numbers = Mapping[str, Tensor | float]


class Readout:
    """Numbers as they are at this point of a GPU's work, to be read when it has got there.

    What lies on a GPU is copied into pinned memory beside its work, and reading waits for that copy alone. All else is
    read at once.

    Examples:
        >>> Readout({"loss": torch.tensor(0.5), "lr": 0.25}).read()
        {'loss': 0.5, 'lr': 0.25}
    """

    def __init__(self, numbers: Numbers) -> None:
        there = {name: x.detach() for name, x in numbers.items() if isinstance(x, Tensor) and x.is_cuda}
        here = {
            name: float(x.detach() if isinstance(x, Tensor) else x) for name, x in numbers.items() if name not in there
        }
        self._names, self._there, self._here = list(numbers), list(there), here
        self.is_there = not there
        if there:
            together = torch.stack([x.reshape(()).double() for x in there.values()])
            self._copied = together.to("cpu", non_blocking=True)  # pinned, since it does not block
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(together.device))

    def read(self) -> dict[str, float]:
        """The numbers, in the order in which they were given."""
        if not self.is_there:
            self._event.synchronize()
            self._here |= zip(self._there, self._copied.tolist(), strict=True)
            self.is_there = True
        return {name: self._here[name] for name in self._names}


class Later:
    """Do something with numbers: at once where they are there, as on a CPU, else when it is time to `catch_up`.

    Examples:
        >>> later = Later()
        >>> later.use({"loss": torch.tensor(0.5)}, print)
        {'loss': 0.5}
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Readout, Callable[[dict[str, float]], None]]] = []

    def use(self, numbers: Numbers, then: Callable[[dict[str, float]], None]) -> None:
        """Call ``then`` with the numbers as they are now."""
        self._waiting.append((readout := Readout(numbers), then))
        if readout.is_there:
            self.catch_up()

    def catch_up(self) -> None:
        """Make the calls that are due, in order: a step later, and before anything that must come after them."""
        while self._waiting:
            readout, then = self._waiting.pop(0)
            then(readout.read())


class Snapshot:
    """Nested dicts, lists and tuples of tensors and plain values as they are at this point, whatever later steps do.

    Tensors are copied: those of a GPU into pinned memory beside its work, which `content` waits for. Tensors that are
    one in memory stay one.
    """

    def __init__(self, content: Any) -> None:
        self._copies: dict[Any, Tensor] = {}
        self._content = self._copy(content)
        self._event = None
        if any(device.type == "cuda" for device, *_ in self._copies):
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._event.record()

    @property
    def is_there(self) -> bool:
        """Whether nobody has to wait for it."""
        return self._event is None

    def content(self) -> Any:
        """The same, on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._content

    def _copy(self, given: Any) -> Any:
        if isinstance(given, Tensor):
            place = (given.device, given.dtype, given.data_ptr(), given.shape, given.stride())
            if place not in self._copies:
                # pinned where it comes from a GPU, since it does not block
                self._copies[place] = given.detach().to("cpu", non_blocking=True, copy=True)
            return self._copies[place]
        if isinstance(given, dict):
            copied = copy(given)  # of its kind, and with what it knows besides
            copied.update({name: self._copy(value) for name, value in given.items()})
            return copied
        return type(given)(map(self._copy, given)) if isinstance(given, list | tuple) else given
