"""What benchmarks share: the machine's name and rate, timed calls and steps, and runs that alternate."""

import argparse
import datetime
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

DTYPES = {"fp32": None, "bf16": torch.bfloat16}


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    """Processor, its 16-bit instructions, threads, torch, date."""
    model, flags = _cpuinfo("model name"), _cpu_flags()
    has = {name: flag in flags for name, flag in (("AMX-BF16", "amx_bf16"), ("AVX512-BF16", "avx512_bf16"))}
    units = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in has.items())
    name = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return (
        f"{model or platform.processor() or platform.machine()} ({units}), {torch.get_num_threads()} thread(s){name}, "
        f"torch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date()}"
    )


def _cpuinfo(key: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags").split())


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


def clock(device: torch.device) -> float:
    """Seconds: on one thread of a CPU those that this process got of it, whatever else the machine does meanwhile."""
    synchronize(device)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def busy_ms(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call by that clock."""
    start = clock(device)
    run()
    return (clock(device) - start) * 1e3


def step_ms(model: nn.Module, loss_of: Callable[[], Tensor], dtype: torch.dtype | None, device: torch.device) -> float:
    """Time of forward, backward and clearing the gradients."""

    def step() -> None:
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    return busy_ms(step, device)


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


class Rate:
    """Product of two square matrices of random numbers, to be timed in turn with what is measured against it."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None, *, side: int = 1024) -> None:
        self.device, self.flops = device, 2 * side**3
        self.a, self.b = (torch.randn(side, side, device=device).to(dtype or torch.float32) for _ in range(2))

    def __call__(self) -> float:
        """Milliseconds of a product, the mean of four."""
        return busy_ms(lambda: [self.a @ self.b for _ in range(4)], self.device) / 4

    def share(self, flops: float, times: list[float], products: list[float]) -> str:
        """Say how much of the machine's rate is reached, turn by turn.

        Args:
            flops: of what took ``times``; that of a training step is three times that of its forward pass.
            times: milliseconds.
            products: of a product in the same turns.
        """
        share = statistics.median(
            flops / ms / (self.flops / one) for ms, one in zip(times, products, strict=True)
        )  # fmt: skip
        return f"{share:.0%} of the matmul rate ({self.flops / statistics.median(products) / 1e6:.3g} GFLOP/s)"


def add_dtypes(parser: argparse.ArgumentParser) -> None:
    """Let a user name precisions; by default those that a machine computes in."""
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        help="bf16 means autocast; without this, what the machine has instructions for",
    )


def measurable(chosen: Sequence[str] | None, device: torch.device) -> list[str]:
    """Precisions to measure; says which one is left out, and why."""
    flags = _cpu_flags()
    if chosen is not None or device.type != "cpu" or flags & {"amx_bf16", "avx512_bf16"}:
        return list(chosen or DTYPES)
    print("bf16: not measured, for this processor has no 16-bit products (AVX512-BF16 or AMX-BF16)")
    return ["fp32"]


def compare_steps(
    ways: Mapping[str, tuple[nn.Module, Callable[[], Tensor]]],
    dtypes: Sequence[str] | None,
    rounds: int,
    device: torch.device,
) -> None:
    """Print what training steps take in every precision, and which share of the machine's rate the first reaches.

    Args:
        ways: model and loss by name.
        dtypes: names of precisions; ``None``: those that the machine has instructions for.
        rounds: timed steps of each.
        device: where they run.
    """
    (first, (_, loss_of)), *_ = ways.items()
    flops = 3 * forward_flops(loss_of)  # the backward pass costs twice its forward pass
    for name in measurable(dtypes, device):
        dtype = DTYPES[name]
        rate = Rate(device, dtype)
        timed = {key: partial(step_ms, *way, dtype, device) for key, way in ways.items()}
        times = alternate({"matmul": rate, **timed}, rounds)
        products = times.pop("matmul")
        print(f"{name}: {compared(times)}; {first} at {rate.share(flops, times[first], products)}")
        if device.type == "cpu":
            print(f"  time of {first}: {time_by_kind(timed[first])}")


KINDS = {
    "products": ("mm", "addmm", "bmm", "convolution"),
    "attention": ("attention", "softmax"),
    "GELU": ("gelu",),
    "norms": ("layer_norm",),
    "copies": ("copy_", "cat", "clone", "index", "gather", "fill_"),
    "sums": ("add", "sum"),
}


def time_by_kind(run: Callable[[], object], *, calls: int = 3) -> str:
    """Say what calls spend their CPU time on: shares of kinds of operations, and the rest."""
    run()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as record:
        for _ in range(calls):
            run()
    spent: Counter[str] = Counter()
    for event in record.key_averages():
        is_operation = event.key.startswith("aten::")  # else a node of autograd's graph: the rest
        kinds = [kind for kind, names in KINDS.items() if is_operation and any(name in event.key for name in names)]
        # attention, before what its name holds of others
        kind = "attention" if "attention" in kinds else (kinds or ["rest"])[0]
        spent[kind] += event.self_cpu_time_total
    return ", ".join(f"{kind} {time / spent.total():.1%}" for kind, time in spent.most_common())


def compared(times: Mapping[str, list[float]]) -> str:
    """Median, minimum and maximum of every way, and of how often the first fits into the last, turn by turn."""
    first, *_, last = times.values()
    ratios = [b / a for a, b in zip(first, last, strict=True)]
    shown = ", ".join(f"{k} {statistics.median(v):.4g} ms ({min(v):.4g}-{max(v):.4g})" for k, v in times.items())
    return f"{shown}, {statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"
