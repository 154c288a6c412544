"""Counts of a pass that need no accelerator: operations, bytes moved, bytes kept for backward, and the peak."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_NOT_LAUNCHED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view")


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count what an accelerator would launch, as the operations that torch dispatches and that are no views.

    A fused operation counts once, as it does as a kernel; some operations take several kernels. ``bytes`` is what all
    of them read and write.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in _NOT_LAUNCHED and not func.is_view:
            given, made = (_tensors(x) for x in ((args, kwargs), out))
            if made:  # what only asks for a size or a number computes nothing
                self.names[name] += 1
                self.bytes += sum(map(_bytes, [*given, *made]))
        return out

    @property
    def total(self) -> int:
        """Number of operations."""
        return self.names.total()


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Highest number of bytes that tensors made meanwhile hold at once, as seen after every operation.

    What an operation holds only while it runs is not seen. Works on the meta device, where nothing is allocated.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._known: set[int] = set()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for given in _tensors((args, kwargs)):
            if given.untyped_storage()._cdata not in self._alive:
                self._known.add(given.untyped_storage()._cdata)  # there before
        out = func(*args, **(kwargs or {}))
        self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}  # type: ignore[no-untyped-call]
        for made in _tensors(out):
            storage = made.untyped_storage()
            if storage._cdata not in self._known:
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return out


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[dict[int, tuple[Tensor, int]]]:
    """Note the storages that autograd keeps meanwhile, with their bytes; those of parameters and buffers left out."""
    own = {x.untyped_storage()._cdata for x in [*model.parameters(), *model.buffers()]}
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = x.detach(), storage.nbytes()  # alive, or another might get its address
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept


def peak_bytes(run: Callable[[], object]) -> int:
    """Highest number of bytes that a call adds to what there is."""
    peak = Peak()
    with peak:
        run()
    return peak.bytes


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _bytes(x: Tensor) -> int:
    """Of a tensor, once for what it repeats."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
