"""A whole training step as one CUDA graph: captured once for each shape of batch, then replayed by one call."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map

WARM_UP = 3  # steps as they are before one is captured: they make what is made once, such as moments and kernels
MOST = 4  # graphs that are kept; steps that differ more often than that are not worth capturing


class _Kind(NamedTuple):
    """What makes two steps the same to a graph."""

    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    plain: tuple[Hashable, ...]


@dataclass(frozen=True, eq=False)
class _Captured:
    """A graph, where it reads its batch, and where it leaves what the step returned."""

    graph: torch.cuda.CUDAGraph
    batch: Any
    results: Any


class StepGraph:
    """Run a step; after the first few, replay what they did.

    A replay launches the same kernels on the same places in memory. So a step must read what changes from tensors
    (batch, rates, generators), and Python numbers that change make another graph: ``baked`` names them. Where a step
    cannot be captured it runs as it is, and ``tell`` is told why, once.

    Args:
        step: of a batch, any nest of tensors; returns a nest of tensors.
        device: where the batches lie; elsewhere than on CUDA every step runs as it is.
        generators: that the step draws from, besides torch's own; they may be seeded anew between steps.
        baked: plain values that the step's arithmetic depends on.
        tell: called with one line.
    """

    def __init__(
        self,
        step: Callable[[Any], Any],
        device: torch.device,
        *,
        generators: Sequence[torch.Generator] = (),
        baked: Callable[[], tuple[Hashable, ...] | None] = tuple,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.step, self.generators, self.baked, self.tell = step, generators, baked, tell
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.refused = self.stream is None
        self.seen: dict[_Kind, int] = {}  # steps of each kind
        self.captured: dict[_Kind, _Captured] = {}

    def __call__(self, batch: Any) -> Any:
        """Do the step of a batch; what it returns is overwritten by the next step."""
        if self.refused:
            return self.step(batch)
        shapes = tuple((tuple(leaf.shape), leaf.dtype) for leaf in tree_leaves(batch))
        key = _Kind(shapes, self.baked() or ())
        if key not in self.captured and not self._capture(key, batch):
            return self._aside(lambda: self.step(batch))
        found = self.captured[key]
        tree_map(lambda place, value: place.copy_(value, non_blocking=True), found.batch, batch)
        found.graph.replay()
        return found.results

    def _aside(self, run: Callable[[], Any]) -> Any:
        """Run on the stream that is captured later: what autograd remembers of streams must be of that one."""
        now = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(now)
        with torch.cuda.stream(self.stream):
            results = run()
        now.wait_stream(self.stream)
        return results

    def _capture(self, key: "_Kind", batch: Any) -> bool:
        """Capture the step where it is time for it; tell whether there is a graph now."""
        self.seen[key] = self.seen.get(key, 0) + 1
        if len(self.seen) > MOST:
            self._refuse(f"batches or plain numbers of the step change: {_difference(*list(self.seen)[-2:])}")
        if self.refused or self.seen[key] <= WARM_UP:
            return False
        graph, place = torch.cuda.CUDAGraph(), tree_map(torch.clone, batch)
        for generator in self.generators if torch.__version__ < "2.14" else ():  # later ones are found by themselves
            graph.register_generator_state(generator)
        try:
            # other threads may go on: they pin memory and write checkpoints
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                results = self.step(place)
        except Exception as error:  # whatever the step does that a graph cannot hold
            self._refuse(" ".join(str(error).split())[:200])
            return False
        self.captured[key] = _Captured(graph, place, results)
        return True

    def _refuse(self, reason: str) -> None:
        self.refused = True
        self.captured.clear()
        self.tell(f"note: steps are not captured as a CUDA graph, and run one kernel after the other: {reason}")


def _difference(one: _Kind, other: _Kind) -> str:
    """What differs between two kinds of steps."""
    if one.shapes != other.shapes:
        return " and ".join(str([list(shape) for shape, _ in kind.shapes]) for kind in (one, other))
    pairs = zip(one.plain, other.plain, strict=False)
    return "; ".join(f"{a} and {b}" for a, b in pairs if a != b) or "there are more of them, or fewer"
