"""Training steps of presets by the engine, as a run does them, in the ways that its options give.

    python -m examples.benchmarks.ways randsac_cifar10 mae_cifar10 --batch 512 --ways eager graph compiled

A step goes from bytes of images through augmentation, draw, forward and backward pass and AdamW to moving averages, in
bfloat16. The time is the mean over the second half of the steps.

    eager      kernel by kernel                   graph      replays of one CUDA graph, as by default
    compiled   one graph of compiled code         pure       the same with weights in 16 bits
    compiled alone   compiled code, kernel by kernel
"""

import argparse
import json
from dataclasses import replace
from typing import Any

import torch

from examples.benchmarks.measure import machine as described
from examples.benchmarks.recipe_steps import RecipeSteps
from ssl_blocks.engine import Machine


def ways(device: str, dtype: torch.dtype | None) -> dict[str, tuple[Machine, bool]]:
    """What a machine is told, and whether code is compiled."""
    plain = Machine(device, dtype)
    graph = replace(plain, graph="on")
    return {
        "eager": (plain, False),
        "graph": (graph, False),
        "compiled alone": (plain, True),
        "compiled": (graph, True),
        "pure": (Machine(device, torch.bfloat16, pure=True, graph="on"), True),
    }


def main() -> None:
    """Time, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ways", nargs="+", choices=list(ways("cpu", None)), default=["eager", "graph", "compiled"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.precision == "bf16" else None
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # for what autocast leaves in single precision
    print(described(torch.device(args.device)), flush=True)
    for preset in args.presets:
        for way in args.ways:
            row = {"preset": preset, "batch": args.batch, "way": way}
            row |= time_one(RecipeSteps(preset, args.batch, steps=args.steps), *ways(args.device, dtype)[way])
            print(json.dumps(row), flush=True)


def time_one(steps: RecipeSteps, machine: Machine, compiled: bool) -> dict[str, Any]:
    """Milliseconds a step, images a second, mean loss, memory; or the error."""
    cuda = machine.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.compiler.reset()
    try:
        done = steps.run(machine, compiled=compiled)
    except Exception as error:  # one that fails leaves the others
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    found: dict[str, Any] = {"ms": round(done.ms, 3), "images_per_s": round(steps.batch / done.ms * 1e3)}
    found |= {"loss": round(done.loss, 5), "told": done.notes}
    return found | ({"reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2)} if cuda else {})


if __name__ == "__main__":
    main()
