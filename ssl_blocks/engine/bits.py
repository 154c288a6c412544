"""What the last bits of a run depend on besides its configuration: told where a run goes on elsewhere."""

import importlib
import platform
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ssl_blocks.engine.checkpoints import differing_facts
from ssl_blocks.engine.parallel import Machine
from ssl_blocks.engine.rank import is_rank_zero
from ssl_blocks.program import VERSION

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "PIL")


def what_bits_depend_on(machine: Machine) -> dict[str, Any]:
    """Plain values: versions, processor, threads, and how a machine computes.

    Equal values do not promise equal bits on a GPU, where some kernels add up in any order.
    """
    device = torch.device(machine.device)
    on_gpu = device.type == "cuda" and torch.cuda.is_available()
    return {
        "ssl_blocks": VERSION,
        **{name: str(importlib.import_module(name).__version__) for name in LIBRARIES},
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "cuda": torch.version.cuda if on_gpu else None,
        "processes": machine.processes.world_size,
        "strategy": machine.strategy if machine.processes.world_size > 1 else None,
        "precision": ("bf16-pure" if machine.pure else None)
        or ("tf32" if machine.tf32 else str(machine.autocast_dtype or torch.float32).removeprefix("torch.")),
    }


def tell_of_bits(ours: Mapping[str, Any], theirs: Mapping[str, Any] | None, tell: Callable[[str], None]) -> None:
    """Tell the user in a line where a run goes on under other conditions than it began, if those are known."""
    changed = differing_facts(ours, theirs) if theirs else []
    if changed and is_rank_zero():
        tell(f"note: the run goes on, but to other bits than it would have come to: {', '.join(changed)}")
