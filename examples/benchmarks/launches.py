"""What a training step asks of a GPU: kernels launched, host waits, copies from the host, and peak memory.

    python -m examples.benchmarks.launches --batch 32                  on a machine with a GPU

Steps of presets as the engine does them, on noise: eager, and captured as one CUDA graph. Step 2 of an eager run is
counted, step 6 of a captured run. A host wait is a call in which the host stands still until the GPU has got
there. Run from the repository root, which must be in PYTHONPATH. ``--counter MODULE`` counts by other means than
torch's profiler: a module with ``reset()`` and ``dump()``, which returns kernels by name as ``K`` and other calls of
the CUDA runtime as ``C``.
"""

import argparse
import importlib
from collections import Counter
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from examples.benchmarks.measure import machine
from examples.benchmarks.recipe_steps import RecipeSteps
from ssl_blocks.engine import Machine

PRESETS = (
    *("randsac_cifar10", "mae_cifar10", "saim_cifar10", "apl_cifar10", "esvit_cifar_small", "combined_cifar_small"),
    *("randsac_imagenet100", "mae_imagenet_vitb", "esvit_imagenet_swint"),
)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class Profiler:
    """Counts by torch's profiler, which needs a GPU."""

    def reset(self) -> None:
        """Begin."""
        self.record = profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True)
        self.record.__enter__()  # type: ignore[no-untyped-call]

    def dump(self) -> dict[str, Counter[str]]:
        """Kernels and calls since then."""
        self.record.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        kernels: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        for event in self.record.events() or ():  # type: ignore[no-untyped-call]
            if event.device_type == DeviceType.CUDA:
                kind = "memcpy_HD_pageable" if "Memcpy HtoD (Pageable" in event.name else None
                (calls if kind else kernels)[kind or event.name] += 1
            elif event.name.startswith("cuda"):
                calls[event.name] += 1
        return {"K": kernels, "C": calls}


class Counting(pl.Callback):
    """Counts one step."""

    def __init__(self, counter: Any, step: int) -> None:
        self.counter, self.step = counter, step
        self.found: dict[str, int] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.counter.reset()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step != self.step + 1 or self.found:
            return
        found = self.counter.dump()
        self.found = {
            "launches": sum(found["K"].values()) + found["C"]["cudaGraphLaunch"],
            "waits": sum(found["C"][name] for name in WAITS),
            "copies": found["C"]["memcpy_HD_pageable"],
        }


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--counter", default=None, help="module that counts; default: torch's profiler")
    args = parser.parse_args()
    counter = Profiler() if args.counter is None else importlib.import_module(args.counter)
    print(machine(torch.device("cuda")))
    print(
        "| preset | eager: launches | waits | copies from the host | GiB | one graph: launches | waits | copies | GiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for preset in args.presets:
        cells = [preset]
        ways: tuple[tuple[Literal["off", "auto"], int], ...] = (("off", 2), ("auto", 6))
        for graph, step in ways:
            counting = Counting(counter, step)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            done = RecipeSteps(preset, args.batch, steps=8).run(
                Machine("cuda", torch.bfloat16, graph=graph),
                counting,
            )
            for note in done.notes:
                print(note)
            peak = torch.cuda.max_memory_allocated() / 2**30
            cells += [*(f"{counting.found[name]:,}" for name in ("launches", "waits", "copies")), f"{peak:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
