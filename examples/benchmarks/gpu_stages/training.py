"""A whole training step of one model: draw, forward, backward, AdamW; eager, compiled, or as one CUDA graph."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import ssl_blocks as sb
from examples.benchmarks.gpu_stages.kernels import captured
from examples.benchmarks.measure import forward_flops, milliseconds, synchronize
from examples.benchmarks.models import MAESize, RandSACSize, mae, pseudocode, randsac
from tests.pseudocode import PseudocodeRandSAC


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Args:
        kind: RandSAC over squares or blobs, its pseudocode, or MAE.
        size: of the model.
        batch: images in a step.
    """

    kind: Literal["squares", "blobs", "pseudocode", "mae"]
    size: RandSACSize | MAESize
    batch: int

    def build(self) -> sb.SegmentPrediction | PseudocodeRandSAC:
        """The model; pseudocode gets the weights of its rival."""
        if isinstance(self.size, MAESize):
            return mae(self.size, normalize=True)
        if self.kind == "blobs":
            return randsac(self.size, sb.BlobPartitioner(counts=(7, 3)))
        objective = randsac(self.size, sb.SquarePartitioner(sides=(self.size.side, 2 * self.size.side)))
        return pseudocode(self.size, objective) if self.kind == "pseudocode" else objective


class Training:
    """Steps of a subject on random images.

    Args:
        subject: what is trained.
        device: where.
        dtype: of autocast; ``None``: none.
        rate: FLOP a second of matrix products of that precision there.
        seconds: how long to measure.
    """

    def __init__(
        self, subject: Subject, device: torch.device, *, dtype: torch.dtype | None, rate: float, seconds: float
    ) -> None:
        torch.manual_seed(0)
        self.subject, self.device, self.dtype, self.rate, self.seconds = subject, device, dtype, rate, seconds
        self.model = subject.build().to(device)
        self.forward: Callable[..., Any] = self.model
        self.generator = torch.Generator(device)
        self.images = torch.randn(subject.batch, 3, subject.size.image, subject.size.image, device=device)
        capturable = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True, capturable=capturable)
        self.kept: Any = None  # a draw for all steps, where a graph cannot hold drawing
        self.loss = torch.zeros((), device=device)
        self.flops = forward_flops(lambda: self.loss_of(self.images[:2], self.draw(self.images[:2]))) // 2

    def draw(self, images: Tensor) -> Any:
        """The random choices of a step."""
        if isinstance(self.model, sb.SegmentPrediction):
            return self.model.draw(images, generator=self.generator)
        assert isinstance(self.subject.size, RandSACSize)
        shape = (len(images), self.subject.size.num_segments)
        return torch.rand(shape, generator=self.generator, device=self.device).argsort(1)

    def loss_of(self, images: Tensor, draw: Any) -> Tensor:
        """A forward pass."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            out = self.forward(images, draw)
        loss: Tensor = out[0] if isinstance(out, tuple) else out.loss
        return loss

    def step(self) -> None:
        """Draw, forward, backward, update."""
        loss = self.loss_of(self.images, self.draw(self.images) if self.kept is None else self.kept)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss.copy_(loss.detach())

    def measure(self, run: Callable[[], object] | None = None) -> dict[str, Any]:
        """Time, throughput, share of the machine's rate, and memory, after three steps to warm up."""
        run = self.step if run is None else run
        for _ in range(3):
            run()
        synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = milliseconds(run, self.device, seconds=self.seconds)
        per_second = self.subject.batch / found["wall_ms"] * 1e3
        found |= {"images_per_s": per_second, "gflop_per_image": 3 * self.flops / 1e9}
        found |= {"mfu": 3 * self.flops * per_second / self.rate, "loss": float(self.loss)}
        if self.device.type == "cuda":
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return found

    def compile(self, **options: Any) -> dict[str, Any]:
        """Compile the model in one graph, and measure."""
        torch.compiler.reset()
        start = time.perf_counter()
        self.forward = torch.compile(self.model, dynamic=False, fullgraph=True, **options)
        self.step()
        synchronize(self.device)
        took = time.perf_counter() - start
        return {**self.measure(), "compile_s": took}

    def graph(self) -> dict[str, Any]:
        """Capture the whole step as one CUDA graph, with the draw inside where that can be, and measure replays."""
        try:
            replay, how = self._capture(), "draw inside"
        except RuntimeError as error:
            how = f"draw outside: {str(error).splitlines()[0][:120]}"
            torch.cuda.synchronize()
            self.kept = self.draw(self.images)
            replay = self._capture()
        try:
            found = self.measure(replay)
            found.pop("peak_gib")  # a graph's memory is its own
            return {**found, "how": how}
        finally:
            self.kept = None

    def _capture(self) -> Callable[[], object]:
        return captured(self.step, self.device, self.generator)
