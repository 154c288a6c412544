"""Pictures of several objectives on one encoder: those of each, in a folder of its own."""

from pathlib import Path

from torch import Tensor

from ssl_blocks.data import ImageData
from ssl_blocks.objectives import WeightedSum
from ssl_blocks.objectives.objective import seen_by
from ssl_blocks.pretrain.figures.registry import draw_examples
from ssl_blocks.values import Views


@draw_examples.register
def _(objective: WeightedSum, images: Tensor | Views, data: ImageData, folder: Path) -> list[Path]:
    files: list[Path] = []
    for name, part in objective.parts.items():
        files += draw_examples(part, seen_by(part, images), data, folder / name)
    return files
