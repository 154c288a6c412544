"""Training steps: the library beside the pseudocode, in every way of running them; and EsViT's loss."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from examples.benchmarks import regions
from examples.benchmarks.gpu_stages.items import Stage
from examples.benchmarks.gpu_stages.kernels import captured, list_kernels
from examples.benchmarks.gpu_stages.training import Subject, Training
from examples.benchmarks.measure import matmul_rate, milliseconds, synchronize
from examples.benchmarks.models import MAESize, RandSACSize, check_equal, pseudocode, randsac
from examples.benchmarks.recipe_steps import RecipeSteps
from examples.benchmarks.ways import ways
from ssl_blocks.engine import Machine

TINY = RandSACSize(dim=48, depth=2, decoder_depth=1)
VIT_T = RandSACSize()
VIT_B = RandSACSize(image=192, patch=16, side=3, dim=768, heads=12, decoder_depth=8)
MAE_TINY = MAESize(dim=48, depth=2, width=48, decoder_depth=1)
MAE_B = MAESize(image=224, patch=16, dim=768, heads=12, width=512, decoder_heads=16, decoder_depth=8)


@dataclass(frozen=True)
class Entry:
    """A subject, and the ways in which its steps are run."""

    name: str
    subject: Subject
    ways: tuple[str, ...]


def plan(*, tiny: bool) -> list[Entry]:
    """What is measured, the most wanted first; whatever compiles takes about 20 seconds."""
    small, large, masked = (TINY, TINY, MAE_TINY) if tiny else (VIT_T, VIT_B, MAE_B)
    b_t, b_b = (4, 4) if tiny else (512, 256)
    squares, twin = Subject("squares", small, b_t), Subject("pseudocode", small, b_t)
    three = ("eager", "compiled", "graph")
    all_ways = ("eager", "eager kernels", "eager graph", "compiled", "graph", "compiled kernels")
    t, b = "ViT-T/4 32", "ViT-B/16 192"
    return [
        Entry(f"RandSAC {t}", squares, all_ways),
        Entry(f"pseudocode {t}", twin, three),
        Entry("MAE ViT-B/16 224", Subject("mae", masked, b_b), three),
        Entry(f"RandSAC {b}", Subject("squares", large, b_b), three),
        Entry(f"RandSAC {t}", squares, ("reduce-overhead",)),
        Entry(f"pseudocode {t}", twin, ("reduce-overhead",)),
        Entry(f"RandSAC {t}, blobs", Subject("blobs", small, b_t), three),
        Entry(f"RandSAC {t}", replace(squares, batch=4 * b_t), ("eager", "compiled")),
        Entry(f"pseudocode {b}", Subject("pseudocode", large, b_b), ("eager", "compiled")),
    ]


def run(stage: Stage) -> None:
    """Measure."""
    device = torch.device(stage.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    stage.run("RandSAC = pseudocode, fp32", lambda: twins(TINY if stage.tiny else VIT_T, device), needs=5, most=30)
    torch.backends.cuda.matmul.allow_tf32 = True  # for what autocast leaves in single precision
    dtype = None if stage.tiny else torch.bfloat16  # many a CPU has but slow detours for 16 bits
    rate = matmul_rate(device, dtype, side=8192 if stage.cuda else 128)
    stage.note("rate", tflops=rate / 1e12)
    region_loss(stage)
    engine(stage)
    listing = stage.settings.out / "kernels.txt"
    listing.write_text("")
    for entry in plan(tiny=stage.tiny):
        built: list[Training] = []
        seconds = 0.05 if stage.tiny else 1.0

        def build(entry: Entry = entry, built: list[Training] = built, seconds: float = seconds) -> dict[str, Any]:
            built.append(Training(entry.subject, device, dtype=dtype, rate=rate, seconds=seconds))
            return {"parameters": sum(p.numel() for p in built[0].model.parameters() if p.requires_grad)}

        name = f"{entry.name}, batch {entry.subject.batch}"
        if stage.run(f"{name}: built", build, needs=5):
            measure(stage, name, built[0], entry.ways, listing)
        built.clear()
        if stage.cuda:
            torch.cuda.empty_cache()


def engine(stage: Stage) -> None:
    """Steps of the recipe as a run does them, from bytes to new weights, in the ways that its options give."""
    dtype, batch = (None, 4) if stage.tiny else (torch.bfloat16, 512)
    steps = RecipeSteps("randsac_cifar10", batch, steps=6 if stage.tiny else 40)
    for way, (machine, compiled) in ways(stage.device, dtype).items():
        if stage.tiny and compiled:  # by a compiler that is slow on a CPU
            continue

        def run(machine: Machine = machine, compiled: bool = compiled) -> dict[str, Any]:
            done = steps.run(machine, compiled=compiled)
            return {"ms": done.ms, "images_per_s": batch / done.ms * 1e3, "loss": done.loss, "told": done.notes}

        stage.run(f"randsac_cifar10 by the engine, batch {batch}: {way}", run, needs=60 if compiled else 5, most=150)


def twins(size: RandSACSize, device: torch.device) -> dict[str, Any]:
    """Library and pseudocode compute the same loss: what follows compares the same work."""
    torch.manual_seed(0)
    objective = randsac(size)
    twin = pseudocode(size, objective).to(device)
    images = torch.randn(4, 3, size.image, size.image, device=device)
    check_equal(size, objective.to(device), twin, images)
    return {"ok": True}


def measure(stage: Stage, name: str, training: Training, ways: tuple[str, ...], listing: Path) -> None:
    """Run steps in every way; a graph of the compiled model only where it did compile, and on a GPU."""
    compiled = False
    for way in ways:
        label = f"{name}: {way}"
        if way == "eager":
            stage.run(label, training.measure, needs=3, most=30)
        elif way in ("compiled", "reduce-overhead"):
            mode = {"mode": way} if way == "reduce-overhead" else {}
            options = {"backend": "eager"} if stage.tiny else mode
            compiled = stage.run(label, partial(training.compile, **options), needs=15, most=90) is not None
        elif way == "eager kernels" or (way == "compiled kernels" and compiled):
            kernels = partial(list_kernels, training.step, training.device, listing)
            stage.run(label, kernels, needs=3, most=30)
        elif stage.cuda and (way == "eager graph" or compiled):
            stage.run(f"{label}, whole step", training.graph, needs=3, most=30)


def region_loss(stage: Stage) -> None:
    """EsViT's loss against loops over pairs of views: time, and memory besides the logits; also as a graph."""
    device = torch.device(stage.device)
    batch, classes = (2, 512) if stage.tiny else (32, 65_536)
    held: list[regions.Case] = []

    def one(way: str) -> dict[str, Any]:
        if not held:
            torch.manual_seed(0)
            dtype = torch.bfloat16 if stage.cuda else torch.float32
            held.append(regions.Case(batch, classes, device=device, dtype=dtype))
        case = held[0]
        loss_of = case.loops if way == "loops" else case.ours
        if way == "library, compiled":
            torch.compiler.reset()
            loss_of = torch.compile(case.ours, dynamic=False)
        found: dict[str, Any] = {"loss": float(case.backward(loss_of))}
        if stage.cuda:
            case.student.grad = None
            synchronize(device)
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            case.backward(loss_of)
            found["extra_gib"] = (torch.cuda.max_memory_allocated() - before) / 2**30
        run: Callable[[], object] = partial(case.backward, loss_of)
        if way == "library, graph":
            run = captured(run, device)
        found |= milliseconds(run, device, seconds=0.3, least=3)
        assert case.student.grad is not None
        return {**found, "grad_norm": float(case.student.grad.float().norm())}

    name = f"EsViT's region loss, batch {batch}, {classes} classes"
    ours, loops = (stage.run(f"{name}: {way}", partial(one, way), needs=3, most=15) for way in ("library", "loops"))
    if stage.cuda:
        stage.run(f"{name}: library, graph", partial(one, "library, graph"), needs=3, most=15)
        stage.run(f"{name}: library, compiled", partial(one, "library, compiled"), needs=15, most=60)
    if ours and loops:
        near = abs(ours["loss"] - loops["loss"]) < 1e-3 * abs(loops["loss"])
        near &= abs(ours["grad_norm"] - loops["grad_norm"]) < 2e-2 * loops["grad_norm"]
        memory = loops["extra_gib"] / max(ours["extra_gib"], 1e-9) if stage.cuda else None
        stage.note(f"{name}: loops / library", ok=near, time=loops["ms"] / ours["ms"], memory=memory)
