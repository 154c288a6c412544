"""What benchmarks share: the machine's name and rate, timed calls and steps, and runs that alternate."""

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

DTYPES = {"fp32": None, "bf16": torch.bfloat16}


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    """Processor, its 16-bit instructions, threads, torch, date."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    has = {name: f" {flag}" in text for name, flag in (("AMX-BF16", "amx_bf16"), ("AVX512-BF16", "avx512_bf16"))}
    units = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in has.items())
    name = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return (
        f"{model or platform.processor() or platform.machine()} ({units}), {torch.get_num_threads()} thread(s){name}, "
        f"torch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date()}"
    )


def milliseconds(
    run: Callable[[], object], device: torch.device, *, seconds: float = 1.0, least: int = 5, most: int = 50
) -> dict[str, float]:
    """Time a call by events on a GPU, by the clock elsewhere; one call more goes first.

    Args:
        run: what to time.
        device: where it computes.
        seconds: about how long to repeat it, within ``least`` and ``most`` calls.
        least: fewest calls.
        most: most calls.

    Returns:
        ``ms`` is the median, ``min_ms`` the minimum, ``wall_ms`` the mean by the clock. On a GPU ``host_ms`` is what
        the host takes to enqueue a call; where it is near ``wall_ms``, the GPU waits for the host.
    """
    start = time.perf_counter()
    run()
    synchronize(device)
    number = int(min(most, max(least, seconds / max(time.perf_counter() - start, 1e-6))))
    if device.type != "cuda":
        times = [clocked(run) for _ in range(number)]
        return {"ms": statistics.median(times), "min_ms": min(times), "wall_ms": statistics.mean(times)}
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(number + 1)]  # type: ignore[no-untyped-call]
    start = time.perf_counter()
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    host = (time.perf_counter() - start) * 1e3 / number
    synchronize(device)
    wall = (time.perf_counter() - start) * 1e3 / number
    times = [a.elapsed_time(b) for a, b in pairwise(marks)]
    return {"ms": statistics.median(times), "min_ms": min(times), "wall_ms": wall, "host_ms": host}


def clocked(run: Callable[[], object]) -> float:
    """Milliseconds of one call on a CPU."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def matmul_rate(device: torch.device, dtype: torch.dtype | None, *, side: int = 1024) -> float:
    """FLOP a second in the product of two square matrices of random numbers; ``None`` is single precision."""
    a, b = (torch.randn(side, side, device=device).to(dtype or torch.float32) for _ in range(2))
    return 2e3 * side**3 / milliseconds(lambda: a @ b, device, seconds=0.3)["ms"]


def forward_flops(run: Callable[[], object]) -> int:
    """FLOP of the matrix products in a forward pass; masked attention counts in full."""
    # not every fused attention kernel is known to the counter
    with sdpa_kernel([SDPBackend.MATH]), FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())


def step_ms(model: nn.Module, loss_of: Callable[[], Tensor], dtype: torch.dtype | None, device: torch.device) -> float:
    """Time of forward, backward and clearing the gradients."""
    synchronize(device)
    start = time.perf_counter()
    with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
        loss = loss_of()
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def alternate(ways: Mapping[str, Callable[[], float]], rounds: int, *, warm: int = 2) -> dict[str, list[float]]:
    """Run all ways in turn, so that a machine that slows down slows each of them.

    Args:
        ways: by name; each returns its own milliseconds.
        rounds: timed turns.
        warm: turns before them.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + warm):
        for name, run in ways.items():
            elapsed = run()
            if turn >= warm:
                times[name].append(elapsed)
    return times


def compared(times: Mapping[str, list[float]]) -> str:
    """Median, minimum and maximum of every way, and of how often the first fits into the last, turn by turn."""
    first, *_, last = times.values()
    ratios = [b / a for a, b in zip(first, last, strict=True)]
    shown = ", ".join(f"{k} {statistics.median(v):.0f} ms ({min(v):.0f}-{max(v):.0f})" for k, v in times.items())
    return f"{shown}, {statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"


def share_of_rate(flops: int, ms: float, rate: float) -> str:
    """Say how much of the machine's rate a step reaches: its backward pass costs twice its forward pass."""
    return f"{3e3 * flops / ms / rate:.0%} of the matmul rate ({rate / 1e9:.3g} GFLOP/s)"
