"""Attention kernels of torch one by one, the kernels that a call runs, and where the host waits."""

import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from examples.benchmarks.gpu_stages.items import place
from examples.benchmarks.measure import synchronize
from ssl_blocks.engine.graph import WARM_UP, CudaCapture

ATTENTION = ("CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "MATH")


@contextmanager
def attention(name: str | None) -> Iterator[None]:
    """Let torch take this attention kernel alone; ``None``: any."""
    if name is None:
        yield
        return
    with sdpa_kernel([getattr(SDPBackend, name)]):
        yield


def profiled(run: Callable[[], object], device: torch.device, *, times: int = 1) -> list[tuple[float, float, str]]:
    """Milliseconds, number and name of the kernels of one call, the slowest first."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU], acc_events=True) as record:
        for _ in range(times):
            run()
        synchronize(device)
    field = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = [(getattr(e, field) / 1e3 / times, e.count / times, e.key) for e in record.key_averages()]
    return sorted((row for row in rows if row[0] > 0), reverse=True)


def list_kernels(run: Callable[[], object], device: torch.device, path: Path) -> dict[str, Any]:
    """Write the sixty slowest kernels of a step to a file; return the ten slowest, the launches and the GPU's share."""
    run()
    synchronize(device)
    start = time.perf_counter()
    rows = profiled(run, device, times=3)
    wall = (time.perf_counter() - start) * 1e3 / 3
    with open(path, "a") as file:
        file.writelines(f"{ms:9.4f} ms {number:7.1f}x {name[:150]}\n" for ms, number, name in rows[:60])
        file.write("\n")
    return {
        "launches": sum(number for _, number, _ in rows),
        "gpu_ms": sum(ms for ms, _, _ in rows),
        "wall_ms_profiled": wall,
        "top": [[ms, number, name[:120]] for ms, number, name in rows[:10]],
    }


def captured(run: Callable[[], object], device: torch.device, *generators: torch.Generator) -> Callable[[], object]:
    """What replays a call as one CUDA graph, recorded as the engine records a step."""
    capture = CudaCapture(device, generators)
    for _ in range(WARM_UP):
        capture.aside(run)
    return capture.record(lambda _: run(), None)[0]


def host_waits(run: Callable[[], object]) -> dict[str, int]:
    """The lines in which a call makes the host wait for the GPU, and how often."""
    found: dict[str, int] = {}

    def hear(message: Warning | str, *_: object, **__: object) -> None:
        if "synchroniz" in str(message):
            where = place(traceback.extract_stack()[:-1])
            found[where] = found.get(where, 0) + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of itself, once
        torch.cuda.set_sync_debug_mode("warn")
        warnings.simplefilter("always")
        warnings.showwarning = hear
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(0)
    return found
