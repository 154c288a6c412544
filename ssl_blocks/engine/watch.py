"""Seeing to it that losses, gradients and weights are numbers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_blocks.engine.checkpoints import last_good
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.late import Later

LOOK_EVERY = 25  # steps between two looks on a GPU


class Verdict(NamedTuple):
    """What a step came to, as numbers that nobody has read yet: few kernels, for they are a part of every step."""

    numbers: Tensor  # the loss, and of every gradient its largest entry [1 + n], none of them finite unless all are
    parameters: Sequence[Any]  # whose gradients these are

    def is_bad(self) -> Tensor:
        """Whether anything was not finite."""
        return _not_finite(self.numbers).any()


def largest(values: Iterable[Tensor]) -> Tensor:
    """The largest entry of every tensor, not finite unless all of its are ``[n]``; nothing is read."""
    whole = [value.detach() for value in values]
    filled = [value for value in whole if value.numel()]  # a process's share may be empty
    if not filled:
        return torch.zeros(len(whole))
    found = iter(torch._foreach_norm(filled, float("inf")))
    none = None if len(filled) == len(whole) else filled[0].new_zeros((), dtype=torch.float32)
    sizes = [next(found) if value.numel() else none for value in whole]
    return torch.stack([size if size.dtype == torch.float32 else size.float() for size in sizes if size is not None])


def _not_finite(values: Tensor) -> Tensor:
    return (values - values).ne(0)  # fewer kernels than isfinite has


class Watch:
    """Find, without making a GPU wait, the first step whose loss or gradient was no finite number.

    The message names the last good checkpoint in the folder, if there is one, and what may help. ``every`` is the
    number of steps between two looks; ``None``: 1 on a CPU, and on a GPU some.
    """

    def __init__(self, folder: Path | None, advice: str, *, every: int | None = None) -> None:
        self.folder, self.advice, self.every = folder, advice, every
        self._seen: Tensor | None = None  # since the last look
        self._parameters: list[Sequence[Any]] = []  # of the steps that were seen
        self._next_step = 0
        self.before_telling: Callable[[], None] = lambda: None  # the message names a file, and one may be under way
        self.keep: Callable[[int], str] = lambda step: ""  # may say where it left what a bad step was made of
        self.name: Callable[[Any], str] = str  # of a parameter
        self._later = Later()

    def see(self, verdict: Verdict, step: int) -> None:
        """Note what step ``step`` came to, the same in all processes."""
        self._later.catch_up()
        numbers = verdict.numbers
        if self._seen is None or self._seen.shape[1] != len(numbers):  # some are left out while they are frozen
            self._look()
            every = self.every or (1 if numbers.device.type == "cpu" else LOOK_EVERY)
            self._seen = torch.empty(every, len(numbers), device=numbers.device)
        self._seen[len(self._parameters)].copy_(numbers)
        self._parameters.append(verdict.parameters)
        self._next_step = step + 1
        if len(self._parameters) == len(self._seen):
            self._look()

    def check(self) -> None:
        """Stop the run if any step so far was bad: call before weights are saved, for it makes a GPU wait."""
        self._look()
        self._later.catch_up()

    def check_saved(self, values: Mapping[str, Tensor], *, total: Callable[[Tensor], Tensor], step: int) -> None:
        """Stop the run if any of the numbers saved after ``step`` is not finite; ``total`` adds up over processes."""
        places: dict[torch.device, list[str]] = {}
        for name, value in values.items():
            places.setdefault(value.device, []).append(name)
        bad = {where: _not_finite(largest(values[name] for name in names)) for where, names in places.items()}
        found = {"any": total(sum((one.sum().float().cpu() for one in bad.values()), torch.zeros(())))}
        found |= {str(where): torch.where(one.any(), one.int().argmax(), -1) for where, one in bad.items()}
        self._later.use(found, partial(self._judge_saved, {str(where): x for where, x in places.items()}, step))
        self._later.catch_up()

    def _look(self) -> None:
        if self._seen is None or not self._parameters:
            return
        seen, steps = self._seen[: len(self._parameters)], self._parameters
        first, self._parameters = self._next_step - len(steps), []
        bad = _not_finite(seen).int()
        place = bad.amax(1).argmax()
        loss, *_ = row = bad.index_select(0, place.reshape(1))[0]
        numbers = {"any": bad.amax(), "place": place, "loss": loss, "count": row[1:].sum()}
        if len(row) > 1:
            numbers["parameter"] = row[1:].argmax()
        self._later.use(numbers, partial(self._judge, first, steps))

    def _judge(self, first_step: int, parameters: Sequence[Sequence[Any]], found: dict[str, float]) -> None:
        if not found["any"]:
            return
        place = int(found["place"])
        step = first_step + place
        count, of_step = int(found["count"]), parameters[place]
        name = self.name(of_step[int(found["parameter"])]) if count else ""
        others = f" and {count - 1} other parameters" if count > 1 else ""
        what = f"the gradient of {name}{others} was not a finite number, though the loss was,"
        what = "the loss was not a finite number" if found["loss"] else what
        self._stop(f"{what} in step {step} (counted from 0)", self.keep(step))

    def _judge_saved(self, names: Mapping[str, Sequence[str]], step: int, found: dict[str, float]) -> None:
        if found["any"]:
            first = [there[int(found[where])] for where, there in names.items() if found[where] >= 0]
            name = first[0] if first else "a number of another process"
            self._stop(f"{name} is not finite after step {step - 1} (counted from 0), and is not saved", "")

    def _stop(self, what: str, kept: str) -> None:
        self.before_telling()
        raise RunStopped(f"{what}, the run stops; {last_good(self.folder)}. {kept}{self.advice}")
