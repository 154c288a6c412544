"""Train SAIM as whole copies and in shards, and leave checkpoints; run by tests/two_processes.py."""

from pathlib import Path

from ssl_blocks.pretrain import Run
from ssl_blocks.recipes.saim import RECIPE
from tests.pretrain.test_saim_recipe import configure

OPTIONS = ("--trainer.precision=fp32", "--data.max_train=48")


def main(folder: Path) -> None:
    for strategy in ("ddp", "fsdp"):
        options = (*OPTIONS, f"--name={strategy}", f"--trainer.strategy={strategy}", f"--output_dir={folder}")
        Run.prepare(configure(*options), RECIPE.assemble).fit()
