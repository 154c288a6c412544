"""Train SAIM as whole copies and in shards, and leave checkpoints; run by tests/two_processes.py."""

from pathlib import Path

from ssl_blocks.pretrain import Run
from ssl_blocks.recipes.saim import RECIPE
from tests.pretrain.test_saim_recipe import configure


def main(folder: Path) -> None:
    for strategy in ("ddp", "fsdp"):
        options = (
            f"--name={strategy}",
            f"--trainer.strategy={strategy}",
            "--trainer.precision=fp32",
            "--data.max_train=64",
        )
        Run.prepare(configure(*options, f"--name={strategy}", f"--output_dir={folder}"), RECIPE.assemble).fit()
