"""Telling every part of an objective where a run stands, wherever the part sits, in a fraction of a millisecond."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from operator import getitem, is_
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

HOOKS = ("before_step", "after_step")
KNOWN = "_known_parts"  # attribute in which an objective remembers its parts; no copy and no file takes it along

_PLAIN = (bool, int, float, str)
_BARE = (*_PLAIN, type(None), Tensor)
NO_PARTS = (Tensor, type, ModuleType, FunctionType, MethodType)
_BOOKKEEPING = frozenset([*vars(nn.Module()), KNOWN])  # parameters, buffers, submodules and hooks, which torch keeps
_TOLD: ContextVar[set[int] | None] = ContextVar("told", default=None)


def tell(objective: nn.Module, hook: str, *args: Any) -> None:
    """Call ``hook`` of every part once, also where objectives inside tell parts of their own."""
    told = _TOLD.get()
    if told is None:
        token = _TOLD.set(set())
        try:
            tell(objective, hook, *args)
        finally:
            _TOLD.reset(token)
        return
    told.add(id(objective))
    for part in _known(objective).with_hook(hook):
        if id(part) not in told:
            told.add(id(part))
            getattr(part, hook)(*args)


def followers(owner: nn.Module) -> list[object]:
    """Parts that are told of steps."""
    known = _known(owner)
    return list({id(part): part for hook in HOOKS for part in known.with_hook(hook)}.values())


def find_parts(owner: nn.Module) -> Iterator[object]:
    """All modules, and the plain objects that they hold, such as partitioners, and what these hold; each once."""
    yield from _Parts(owner).found


def _known(owner: nn.Module) -> "_Parts":
    """The parts as they were found last time, if nothing was put elsewhere since."""
    known: _Parts | None = vars(owner).get(KNOWN)
    if known is None or not known.still_holds():
        vars(owner)[KNOWN] = None  # there before sizes are noted
        known = vars(owner)[KNOWN] = _Parts(owner)
    return known


class _Parts:
    """Parts of a module, and where they were found.

    Whether they still are is looked up by what runs without Python code between: sizes of all dicts and lists that were
    walked through, and what lies at every place that held a part, or nothing.
    """

    def __init__(self, owner: nn.Module) -> None:
        self.found: list[object] = []
        self._sized: list[Any] = []
        self._containers: list[Any] = []
        self._keys: list[Any] = []
        self._values: list[Any] = []
        self._hooked: dict[str, list[object]] = {}
        self._walk(owner)
        self._sizes = list(map(len, self._sized))

    def with_hook(self, hook: str) -> list[object]:
        """Parts whose class has such a method."""
        if hook not in self._hooked:
            # asked of the class: a module that lacks a name looks for it in three places
            self._hooked[hook] = [part for part in self.found if hasattr(type(part), hook)]
        return self._hooked[hook]

    def still_holds(self) -> bool:
        """Whether every part lies where it was; what holds none, such as sums of a step, may come and go."""
        try:
            if self._sizes == list(map(len, self._sized)) and all(
                map(is_, map(getitem, self._containers, self._keys), self._values)
            ):
                return True
            return self._only_bare_moved()
        except (KeyError, IndexError):
            return False

    def _only_bare_moved(self) -> bool:
        """Note what changed, if nothing of it is a part or could hold one."""
        for number, (container, key, old) in enumerate(zip(self._containers, self._keys, self._values, strict=True)):
            new = container[key]
            if new is not old:
                if not (_is_bare(old) and _is_bare(new)):
                    return False
                self._values[number] = new
        for number, container in enumerate(self._sized):
            if len(container) != self._sizes[number]:
                if not _is_bare(container):
                    return False
                self._sizes[number] = len(container)
        return True

    def _walk(self, owner: nn.Module) -> None:
        seen: set[int] = set()
        pending: deque[Any] = deque([owner])
        while pending:
            value = pending.popleft()
            if id(value) in seen or isinstance(value, NO_PARTS):
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                self.found.append(value)
                pending += self._held(value._modules, value._modules)
                # what a module hides in a container, such as the module that an average follows, is somebody else's
                own = self._held(vars(value), [name for name in vars(value) if name not in _BOOKKEEPING])
                pending += [part for part in own if not isinstance(part, nn.Module)]
            elif hasattr(value, "__dict__"):
                self.found.append(value)
                pending += self._held(vars(value), vars(value))

    def _held(self, container: Any, keys: Iterable[Any]) -> Iterator[Any]:
        """What a container holds, in others, too."""
        if not isinstance(container, tuple):
            self._sized.append(container)
        for key in keys:
            part = container[key]
            if isinstance(part, _PLAIN):
                continue
            self._containers.append(container)
            self._keys.append(key)
            self._values.append(part)
            if isinstance(part, dict | list | tuple):
                yield from self._held(part, part if isinstance(part, dict) else range(len(part)))
            elif part is not None:
                yield part


def _is_bare(value: Any) -> bool:
    """Whether nothing in a value could be a part."""
    if isinstance(value, dict | list | tuple):
        return all(map(_is_bare, value.values() if isinstance(value, dict) else value))
    return isinstance(value, _BARE)
