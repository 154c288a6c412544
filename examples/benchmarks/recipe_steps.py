"""Training steps of a preset as the engine does them, on noise in place of images."""

import time
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor

from examples.benchmarks.measure import synchronize
from ssl_blocks.data import ImageData, ImageShape
from ssl_blocks.engine import Machine
from ssl_blocks.engine.fit import fit
from ssl_blocks.engine.loop import Loop
from ssl_blocks.pretrain import PretrainModule, RunConfig
from ssl_blocks.pretrain.recipe import Recipe, build
from ssl_blocks.recipes import RECIPES

SMALL = {"cifar": 32, "stl10": 96, "digits": 8}  # sides of images that a preset leaves as they are


@dataclass(frozen=True)
class RecipeSteps:
    """One epoch of so many steps.

    Args:
        preset: by name.
        batch: images in a step; the learning rate follows it.
        steps: of the run, of which the first fifth warm up.
    """

    preset: str
    batch: int
    steps: int = 10

    @property
    def recipe(self) -> Recipe[Any]:
        """To which the preset belongs."""
        return RECIPES[self.preset.partition("_")[0]]

    @property
    def config(self) -> RunConfig:
        """The preset's, of one epoch."""
        content = yaml.safe_load(self.recipe.preset_files()[self.preset].read_text())
        content.setdefault("optimizer", {}).update(batch_size=self.batch, warmup_epochs=0.2, accumulate=1, min_lr=0)
        content.setdefault("trainer", {})["epochs"] = 1
        return self.recipe.config.model_validate(content)  # type: ignore[no-any-return]

    def module(self, *, compiled: bool = False) -> PretrainModule:
        """Objective and noise; compiled in torch's default mode."""
        config = self.config
        trainer = config.trainer.model_copy(update={"compile": compiled})
        config = config.model_copy(update={"trainer": trainer})
        known = next((side for name, side in SMALL.items() if name in config.data.name), 224)
        size = config.data.image_size or known
        height, width = (size, size) if isinstance(size, int) else size
        data = ImageData.stand_in(ImageShape(3, height, width), num_train=self.batch * self.steps)
        return PretrainModule(build(config, self.recipe.assemble, data), data, config)

    def run(self, machine: Machine, *callbacks: pl.Callback, compiled: bool = False) -> "Trained":
        """Train, and tell what came of it."""
        notes: list[str] = []
        module = self.module(compiled=compiled)
        loop = Loop(module, machine, tell=notes.append)
        clock = _Clock(torch.device(machine.device))
        fit(loop, callbacks=[clock, *callbacks])
        state = {name: value.clone() for name, value in module.objective.state_dict().items()}
        return Trained(loop.losses[0], state, clock.milliseconds, notes)


@dataclass(frozen=True, eq=False)
class Trained:
    """Mean loss, weights, milliseconds a step over the second half, and what the user was told."""

    loss: float
    state: dict[str, Tensor]
    ms: float
    notes: list[str]

    def equals(self, other: "Trained") -> bool:
        """Whether all weights are the same bits."""
        return all(torch.equal(value, other.state[name]) for name, value in self.state.items())

    def distance(self, other: "Trained") -> float:
        """Of the weights, as a share of their norm."""
        ours, theirs = (torch.cat([x.flatten().double() for x in run.state.values()]) for run in (self, other))
        return float((ours - theirs).norm() / ours.norm())


class _Clock(pl.Callback):
    """Times the second half of the steps together."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.started, self.first, self.milliseconds = device, 0.0, 0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps // 2:
            synchronize(self.device)
            self.started, self.first = time.perf_counter(), trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        synchronize(self.device)
        self.milliseconds = (time.perf_counter() - self.started) * 1e3 / (trainer.global_step - self.first)
