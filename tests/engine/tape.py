"""What a CUDA graph does, on a CPU: operations recorded once, then done again on the same places in memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl_blocks.engine.graph import CudaCapture
from ssl_blocks.engine.loop import Loop

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "lift_fresh")


class _Recording(TorchDispatchMode):
    """Notes every operation, with numbers as they are now."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = function._schema.name.removeprefix("aten::"), kwargs or {}
        if name in WAITS:
            raise RuntimeError(f"a recorded step reads a number: {name}")
        out = function(*args, **kwargs)
        if not name.startswith(("empty", "new_empty", "detach")):
            given = {
                leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
            }
            made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            fresh = [x for x in made if x.untyped_storage().data_ptr() not in given]
            if fresh or function._schema.is_mutable:
                self.calls.append((function, args, kwargs, fresh and made))
        return out


class Tape(CudaCapture):
    """Stands for `CudaCapture`; counts what it records and replays."""

    def __init__(self) -> None:
        self.tapes = self.replays = 0

    def aside(self, run: Callable[[], Any]) -> Any:
        """There are no streams."""
        return run()

    def record(self, step: Callable[[Any], Any], batch: Any) -> tuple[Callable[[], object], Any]:
        """Record a step without having done it: what it changed is put back."""
        self.tapes += 1
        recording, before = _Recording(), _Undo()
        with before, recording:
            results = step(batch)
        before.undo()

        def replay() -> None:
            self.replays += 1
            with torch.no_grad(), torch.autocast("cpu", enabled=False):  # casts are recorded
                for function, args, kwargs, places in recording.calls:
                    made = [leaf for leaf in tree_leaves(function(*args, **kwargs)) if isinstance(leaf, Tensor)]
                    for place, value in zip(places, made, strict=False):
                        if place.data_ptr() != value.data_ptr():
                            place.copy_(value)

        return replay, results


class _Undo(TorchDispatchMode):
    """Keeps what operations change in place, as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[Any, tuple[Tensor, Tensor]] = {}
        self.generators = {torch.default_generator: torch.get_rng_state()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.is_mutable:
            for leaf in tree_leaves((args, kwargs or {})):
                if isinstance(leaf, Tensor):
                    self.kept.setdefault((leaf.data_ptr(), leaf.shape), (leaf.detach(), leaf.detach().clone()))
        for value in (kwargs or {}).values():
            if isinstance(value, torch.Generator):
                self.generators.setdefault(value, value.get_state())
        return function(*args, **(kwargs or {}))

    def undo(self) -> None:
        """Put it all back."""
        with torch.no_grad():
            for place, value in reversed(self.kept.values()):
                place.copy_(value)
        for generator, state in self.generators.items():
            generator.set_state(state)


class FusedLoop(Loop):
    """An optimizer as on a GPU."""

    fused = True


class TapeLoop(FusedLoop):
    """Steps recorded as on a GPU."""

    def capture(self) -> Tape:
        """The one that stands for it."""
        self.tape = Tape()
        return self.tape

    @property
    def tapes(self) -> int:
        """Recorded steps."""
        return self.tape.tapes

    @property
    def replays(self) -> int:
        """Replayed ones."""
        return self.tape.replays
