"""Distil between views in as many processes as torchrun started; the runs' checkpoints tell what came of it.

Views are cut without any draw, so that an image has the same ones whichever process sees it. Run by
tests/two_processes.py.
"""

from pathlib import Path

from ssl_blocks import Views
from ssl_blocks.data import RandomResizedCropFlip
from ssl_blocks.pretrain import Run
from ssl_blocks.recipes.esvit import RECIPE
from tests.pretrain.test_esvit_recipe import MAP, configure

APART = "--koleo_weight=0.1"  # of the images of both processes, but of accumulated parts at each
CASES = {
    "ddp-accumulated": ["--optimizer.accumulate=2"],
    "sharded": ["--trainer.strategy=fsdp", APART],
}
OPTIONS = ["--trainer.precision=fp32", "--teacher.momentum=0.5", "--head.freeze_epochs=0", "--encoder.drop_path=0"]
OPTIONS += ["--data.max_train=32"]


class Fixed:
    """An image, its mirror image and a corner."""

    def file_crop(self, size):
        return RandomResizedCropFlip(size)  # nothing comes out of files

    def __call__(self, images, *, generator=None):
        return Views((images, images.flip(3), images[..., :8, :8].contiguous()), num_global=2)

    finish = __call__


def train(folder: Path, name: str, *options: str) -> Path:
    run = Run.prepare(configure(folder, *MAP, *OPTIONS, *options, f"--name={name}"), RECIPE.assemble)
    run.module.augment = Fixed()
    return run.fit()


def main(folder: Path) -> None:
    for case, options in CASES.items():
        train(folder, case, *options)
