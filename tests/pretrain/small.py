"""A small run on the digits, and its parts, for tests of interrupted and divided runs.

It trains and exports, and neither scores, draws nor looks, which would take longer: a test of these asks for them.
"""

from functools import cache
from pathlib import Path

import sklearn.datasets
import torch

from ssl_blocks.cli import load_config
from ssl_blocks.data import ImageData, RandomResizedCropFlip
from ssl_blocks.engine.checkpoints import list_checkpoints, read_checkpoint
from ssl_blocks.pretrain import Run
from ssl_blocks.recipes.randsac import RECIPE, RandSACConfig, assemble

sklearn.datasets.load_digits = cache(sklearn.datasets.load_digits)  # a table of text, parsed anew for every run

BARE = ("--trainer.score=false", "--trainer.figures=false", "--trainer.look_every=None")
SMALL = [
    "--preset=randsac_digits",
    "--name=run",
    "--data.max_train=128",
    "--data.max_test=64",
    "--encoder.depth=2",
    "--encoder.width=16",
    "--encoder.heads=2",
    "--decoder.depth=1",
    "--decoder.heads=2",
    "--trainer.epochs=3",
    "--trainer.knn_every=1",
    "--trainer.checkpoint_every=0.5",
    "--optimizer.batch_size=32",
    "--optimizer.warmup_epochs=1",
    "--trainer.device=cpu",
    *BARE,
]
NUM_STEPS = 12


def arguments(folder: Path, *more: str) -> list[str]:
    """Options of the small run, some of them replaced."""
    options = [*SMALL, f"--output_dir={folder}"]
    return list({option.partition("=")[0]: option for option in [*options, *more]}.values())


def config(folder: Path, *more: str) -> RandSACConfig:
    return load_config(RECIPE, arguments(folder, *more))


def prepare(folder: Path, *more: str, resume: Path | bool | None = None, build=assemble) -> Run:
    return Run.prepare(config(folder, *more), build, resume=resume)


class Untouched(RandomResizedCropFlip):
    """No augmentation."""

    def __init__(self) -> None:
        super().__init__(8)

    def __call__(self, images, *, generator=None):
        return images


def final(run: Path) -> dict:
    """Content of the last checkpoint."""
    return read_checkpoint(list_checkpoints(run)[0])


def differences(one: dict, other: dict) -> list[str]:
    """Names of what differs in weights or in the optimizer's state of two checkpoints, bit by bit."""
    found = [name for name, value in one["state_dict"].items() if not torch.equal(value, other["state_dict"][name])]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, other)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        found += [f"{index}.{name}" for name, value in state.items() if not torch.equal(value, states[1][index][name])]
    return found


def acting(action, at_step: int):
    """An ``assemble`` whose objective calls ``action(objective)`` after this many optimizer steps."""

    def build(config: RandSACConfig, data: ImageData):
        objective = assemble(config, data)
        steps = 0

        def after_step() -> None:
            nonlocal steps
            steps += 1
            if steps == at_step:
                action(objective)

        objective.after_step = after_step
        return objective

    return build
