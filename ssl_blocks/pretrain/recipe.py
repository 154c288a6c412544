"""A recipe: a method that can be pretrained by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import ssl_blocks as sb
from ssl_blocks.pretrain.config import RunConfig

C = TypeVar("C", bound=RunConfig)
Assemble = Callable[[C, "sb.data.ImageData"], "sb.Objective"]


@dataclass(frozen=True)
class Recipe(Generic[C]):
    """All that the command line, dry runs, tables and tests need to know of a method.

    Args:
        name: of its command, and what the names of its presets begin with: ``NAME_*.yaml``.
        config: everything that a run depends on.
        assemble: puts the objective together. Of the data most look at ``data.shape`` alone; codebooks and statistics
            come from ``data.train``, which is noise in a dry run.
        presets: folder of its presets.
    """

    name: str
    config: type[C]
    assemble: Assemble[C]
    presets: Path

    @property
    def title(self) -> str:
        """What it is, in a line: the first one of the file that assembles it."""
        return (sys.modules[self.assemble.__module__].__doc__ or "").partition("\n")[0]

    def preset_files(self) -> dict[str, Path]:
        """The presets of this recipe by name."""
        return {file.stem: file for file in sorted(self.presets.glob(f"{self.name}_*.yaml"))}


def with_data_in_code(config: C) -> C:
    """The same configuration, which says that no name leads to the data."""
    return config.model_copy(update={"data": config.data.model_copy(update={"name": sb.data.IN_CODE})})


def build(config: C, assemble: Assemble[C], data: sb.data.ImageData) -> sb.Objective:
    """Assemble the objective with weights that depend on the configuration's seed alone."""
    import torch  # not above: --help would wait for it

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return assemble(config, data)
