"""A whole training step as one CUDA graph: captured once for each shape of batch, then replayed by one call."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map

WARM_UP = 3  # steps as they are before one is captured: they make what is made once, such as moments and kernels
MOST = 4  # graphs that are kept; steps that differ more often than that are not worth capturing


class _Kind(NamedTuple):
    """What makes two steps the same to a graph."""

    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    plain: tuple[Hashable, ...]


class CudaCapture:
    """Records steps as CUDA graphs; they may draw from ``generators``, seeded anew between steps, and torch's own."""

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        self.generators = generators
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def aside(self, run: Callable[[], Any]) -> Any:
        """Run as it is, on the stream that is recorded later: what autograd remembers of streams must be that one."""
        now = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(now)
        with torch.cuda.stream(self.stream):
            results = run()
        now.wait_stream(self.stream)
        return results

    def record(self, step: Callable[[Any], Any], batch: Any) -> tuple[Callable[[], object], Any]:
        """Capture the kernels of a step of the batch at these places: what replays them, and where results will lie."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators if torch.__version__ < "2.14" else ():  # later ones are found by themselves
            graph.register_generator_state(generator)
        # other threads may go on: they pin memory and write checkpoints
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            results = step(batch)
        return graph.replay, results


class StepGraph:
    """Run a step; after the first few, replay what they did.

    A replay launches the same kernels on the same places in memory. So a step must read what changes from tensors
    (batch, rates, generators), and plain numbers that change make another graph: ``baked`` names them. Where a step
    cannot be recorded, or ``capture`` is ``None``, it runs as it is; ``tell`` is told why in a line, once. Batches and
    what the step returns are nests of tensors.
    """

    def __init__(
        self,
        step: Callable[[Any], Any],
        capture: CudaCapture | None,
        *,
        baked: Callable[[], tuple[Hashable, ...] | None] = tuple,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.step, self.capture, self.baked, self.tell = step, capture, baked, tell
        self.seen: dict[_Kind, int] = {}  # steps of each kind
        self.recorded: dict[_Kind, tuple[Callable[[], object], Any, Any]] = {}  # replays it; its batch; its results

    def __call__(self, batch: Any) -> Any:
        """Do the step of a batch; what it returns is overwritten by the next step."""
        if self.capture is None:
            return self.step(batch)
        shapes = tuple((tuple(leaf.shape), leaf.dtype) for leaf in tree_leaves(batch))
        kind = _Kind(shapes, self.baked() or ())
        if kind not in self.recorded and not self._record(kind, batch, self.capture):
            return self.step(batch) if self.capture is None else self.capture.aside(lambda: self.step(batch))
        replay, places, results = self.recorded[kind]
        tree_map(lambda place, value: place.copy_(value, non_blocking=True), places, batch)
        replay()
        return results

    def _record(self, kind: _Kind, batch: Any, capture: CudaCapture) -> bool:
        """Record the step where it is time for it; tell whether there is something to replay now."""
        self.seen[kind] = self.seen.get(kind, 0) + 1
        if len(self.seen) > MOST:
            self._give_up(f"batches or plain numbers of the step change: {_difference(*list(self.seen)[-2:])}")
        elif self.seen[kind] > WARM_UP:
            place = tree_map(torch.clone, batch)
            try:
                replay, results = capture.record(self.step, place)
            except Exception as error:  # whatever the step does that a graph cannot hold
                self._give_up(" ".join(str(error).split())[:200])
            else:
                self.recorded[kind] = replay, place, results
        return kind in self.recorded

    def _give_up(self, reason: str) -> None:
        self.capture = None
        self.recorded.clear()
        self.tell(f"note: steps are not captured as a CUDA graph, and run one kernel after the other: {reason}")


def _difference(one: _Kind, other: _Kind) -> str:
    """What differs between two kinds of steps."""
    if one.shapes != other.shapes:
        return " and ".join(str([list(shape) for shape, _ in kind.shapes]) for kind in (one, other))
    pairs = zip(one.plain, other.plain, strict=False)
    return "; ".join(f"{a} and {b}" for a, b in pairs if a != b) or "there are more of them, or fewer"
