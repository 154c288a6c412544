"""Compile every method of the gallery in one graph; run by tests/compile_check.py.

Tracing costs about as much as there are blocks, and a second one shows nothing new, but to a target amid the blocks.
"""

from typing import Any

import torch
import torch._dynamo.utils

from tests.gallery.methods import NAMES, draw, tiny


def check(name: str) -> dict[str, float]:
    """Difference between compiled and eager losses of two draws, and how many graphs these took."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    objective, images = tiny(name, depth=2 if name == "data2vec" else 1)
    draws = [draw(objective, images, seed) for seed in range(2)]
    eager = [objective(images, one).loss.item() for one in draws]
    compiled: Any = torch.compile(objective, fullgraph=True, backend="eager")
    found = [compiled(images, one).loss.item() for one in draws]
    return {
        "loss": max(abs(a - b) for a, b in zip(eager, found, strict=True)),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }


def methods() -> dict[str, dict[str, float]]:
    """Every method."""
    return {name: check(name) for name in NAMES}
