"""Compile in one graph what methods of the gallery do not share with others; run by tests/compile_check.py."""

from typing import Any

import torch
import torch._dynamo.utils

from tests.gallery.methods import draw, tiny

COMPILED = ("cae", "dinov2", "hpm", "ijepa", "lejepa", "simmim")  # read, compare or compose in a way of their own
TARGETS = ("beit", "data2vec", "mae_dct", "mae_perceptual", "maskfeat", "nepa")  # a target of their own, alone


def check(name: str) -> dict[str, float]:
    """Difference between compiled and eager losses, or targets, of two draws, and how many graphs these took."""
    torch._dynamo.reset_code_caches()
    torch._dynamo.utils.counters.clear()
    objective, images = tiny(name, depth=2 if name in TARGETS else 1)

    def run(one: Any) -> Any:
        return objective(images, one).loss.detach() if name in COMPILED else objective.target(one)

    draws = [draw(objective, images, seed) for seed in range(2)] if name in COMPILED else [images, -images]
    eager = [run(one) for one in draws]
    compiled: Any = torch.compile(run, fullgraph=True, backend="eager")
    found = [compiled(one) for one in draws]
    return {
        "apart": max(float((a - b).abs().max()) for a, b in zip(eager, found, strict=True)),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }


def methods() -> dict[str, dict[str, float]]:
    """By name."""
    return {name: check(name) for name in (*COMPILED, *TARGETS)}
