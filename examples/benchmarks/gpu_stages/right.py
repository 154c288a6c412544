"""Whether the library computes on a GPU what it computes on a CPU, and lets nothing leak there."""

import copy
import time
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import ssl_blocks as sb
from examples.benchmarks.gpu_stages.items import Stage
from examples.benchmarks.gpu_stages.kernels import attention
from examples.benchmarks.gpu_stages.objectives import KINDS, Pass, distance, images_for, moved, run_pass
from examples.benchmarks.recipe_steps import RecipeSteps
from ssl_blocks.engine import Machine
from ssl_blocks.testing import assert_no_leak

AMID = sb.Progress(step=50, epoch=5, num_steps=100, steps_per_epoch=10)
PREDICTING = ("squares", "blobs", "mae", "saim", "two streams, blobs", "simmim", "class token, first")
PRESETS = ("randsac_cifar10", "mae_cifar10", "saim_cifar10", "apl_cifar10", "esvit_cifar_small")
KERNELS = ("CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


def run(stage: Stage) -> None:
    """Check."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    checks = Checks(stage.device, batch=2 if stage.tiny else 16, tiny=stage.tiny)
    few = ("blobs", "mae", "esvit")  # under tiny; a kind each of segments, masks and views
    for name in KINDS:
        stage.run(f"fp32 = CPU: {name}", partial(checks.equal, name), needs=3, most=25)
    for name in few[:1] if stage.tiny else PREDICTING:
        stage.run(f"no leak, fp32: {name}", partial(checks.sealed, name), needs=4, most=25)
    for name in few if stage.tiny else KINDS:
        stage.run(f"bf16 near fp32: {name}", partial(checks.near, name), needs=2, most=15)
    for name in few[:2] if stage.tiny else PREDICTING:
        stage.run(f"no leak, bf16: {name}", partial(checks.sealed_in_bf16, name), needs=2, most=15)
    for kernel in KERNELS if stage.cuda else KERNELS[-1:]:
        for name in ("blobs",) if stage.tiny else ("squares", "blobs"):
            what = f"{name}, {kernel.lower()}"
            stage.run(f"bf16 near fp32: {what}", partial(checks.near, name, kernel), needs=2, most=15)
            stage.run(f"no leak, bf16: {what}", partial(checks.sealed_in_bf16, name, kernel), needs=2, most=15)
    for preset in ("randsac_digits",) if stage.tiny else PRESETS:
        stage.run(f"steps of one graph = steps: {preset}", partial(replayed, preset, stage), needs=6, most=40)
    for name in ("apl, timm",) if stage.tiny else ("squares", "blobs", "mae", "esvit"):
        stage.run(f"compiled = eager, fp32: {name}", partial(checks.compiled, name), needs=12, most=60)


class Checks:
    """Passes of objectives on a device, against those on CPU of the same weights, images and draws."""

    def __init__(self, device: str, *, batch: int, tiny: bool) -> None:
        self.device, self.batch, self.tiny = device, batch, tiny
        self.reference = cache(self._reference)

    def _reference(self, name: str) -> tuple[sb.Objective, Any, Any, Pass]:
        torch.manual_seed(0)
        objective = KINDS[name]()
        objective.before_step(AMID)
        images = images_for(objective, self.batch)
        draw = objective.draw(images, generator=torch.Generator().manual_seed(2))
        return objective, images, draw, run_pass(objective, images, draw)

    def there(self, name: str) -> tuple[sb.Objective, Any, Any, Pass]:
        """Objective, images and draw on the device, and what came of them on CPU."""
        objective, images, draw, expected = self.reference(name)
        objective.before_step(AMID)  # drops what the pass left for the centres
        return copy.deepcopy(objective).to(self.device), moved(images, self.device), moved(draw, self.device), expected

    def equal(self, name: str) -> dict[str, Any]:
        """Loss and gradients are those on CPU; a draw on the device gives a finite loss."""
        objective, images, draw, expected = self.there(name)
        far = distance(run_pass(objective, images, draw), expected)
        drawn = objective.draw(images, generator=torch.Generator(self.device).manual_seed(2))
        finite = bool(torch.isfinite(objective(images, drawn).loss))
        return {"ok": far["loss"] < 1e-4 and far["grad"] < 1e-3 and finite, **far}

    def near(self, name: str, kernel: str | None = None) -> dict[str, Any]:
        """Loss and gradients under bf16 are near those in single precision on CPU."""
        objective, images, draw, expected = self.there(name)
        with attention(kernel):
            far = distance(run_pass(objective, images, draw, dtype=torch.bfloat16), expected)
        return {"ok": far["loss"] < 2e-2 and far["grad"] < 0.1, **far}

    def sealed(self, name: str) -> dict[str, Any]:
        """The library's own check finds no leak."""
        torch.manual_seed(0)
        objective = KINDS[name]().to(self.device)
        images = torch.randn(2, 3, 32, 32, device=self.device)
        assert_no_leak(
            objective, images, generator=torch.Generator(self.device).manual_seed(0), draws=2 if self.tiny else 128
        )
        return {"ok": True}

    @torch.no_grad()
    def sealed_in_bf16(self, name: str, kernel: str | None = None) -> dict[str, Any]:
        """Under bf16 no prediction moves by a bit when what it must not see does."""
        objective, images, draw, _ = self.there(name)
        with attention(kernel), torch.autocast(self.device, torch.bfloat16):
            return leak(objective.eval(), images, draw)

    def compiled(self, name: str) -> dict[str, Any]:
        """Compiled in one graph, it computes the same."""
        objective, images, draw, _ = self.there(name)
        eager = run_pass(objective, images, draw)
        torch.compiler.reset()
        start = time.perf_counter()
        forward = torch.compile(objective, fullgraph=True, dynamic=False, backend="eager" if self.tiny else "inductor")
        far = distance(run_pass(objective, images, draw, forward=forward), eager)
        return {"ok": far["loss"] < 1e-4 and far["grad"] < 1e-3, **far, "seconds": time.perf_counter() - start}


def replayed(preset: str, stage: Stage) -> dict[str, Any]:
    """Ten steps of a preset leave the same weights, where all but the first are replays of one CUDA graph, too."""
    dtype = None if stage.tiny else torch.bfloat16
    steps = RecipeSteps(preset, batch=4 if stage.tiny else 32)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # sums of scattered gradients may come in any order
    try:
        plain, again, graph = (steps.run(Machine(stage.device, dtype, graph=way)) for way in ("off", "off", "on"))
    finally:
        torch.use_deterministic_algorithms(deterministic)
    far, noise = plain.distance(graph), plain.distance(again)
    same, told = plain.equals(graph), graph.notes
    return {"ok": (same or far <= 10 * noise) and not told, "same": same, "far": far, "noise": noise, "told": told}


def leak(objective: sb.Objective, images: Tensor, draw: sb.Serialization) -> dict[str, Any]:
    """Put noise on all pixels of a step and later ones: predictions up to that step must stay, later ones must move."""
    tokenizer = objective.tokenizer
    assert tokenizer is not None
    step_of = draw.put(draw.step)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5)).to(images.device)
    out = objective(images, draw)
    ones = torch.ones_like(tokenizer(images))
    moved_early, is_felt = 0.0, True
    for step in range(int(draw.step.max()) + 1):
        where = tokenizer.untokenize(ones * (step_of >= step)[:, :, None, None, None]) != 0
        predictions = objective(images + noise * where, draw).predictions
        by = (predictions.float() - out.predictions.float()).abs().amax(-1)
        early, late = out.is_target & (out.step <= step), out.is_target & (out.step > step)
        moved_early = max(moved_early, float(by.where(early, 0.0).max()))
        is_felt = is_felt and (not bool(late.any()) or float(by.where(late, 0.0).max()) > 0)
    return {"ok": moved_early == 0.0 and is_felt, "leak": moved_early, "later_ones_move": is_felt}
