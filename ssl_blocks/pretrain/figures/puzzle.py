"""Pictures of the patch puzzle: shuffled, as guessed, and solved."""

from pathlib import Path

from torch import Tensor

from ssl_blocks.data import ImageData, denormalize
from ssl_blocks.objectives import PatchPuzzle
from ssl_blocks.parts.target import PositionTarget
from ssl_blocks.pretrain.figures.registry import draw_examples
from ssl_blocks.randomness import random_ranks, seeded_generator
from ssl_blocks.visualize import draw_puzzles, save_figure


@draw_examples.register
def _(objective: PatchPuzzle, images: Tensor, data: ImageData, folder: Path) -> list[Path]:
    if not isinstance(objective.target, PositionTarget):
        return []
    grid = objective.tokenizer.grid
    pictures = denormalize(images, data.mean, data.std).clamp(0, 1)
    shuffled = random_ranks(len(images), grid.num_tokens, generator=seeded_generator("cpu", 0), device="cpu")
    guessed = objective.target.arrange(objective(images, objective.keep_all(images)).predictions)
    save_figure(draw_puzzles(objective.tokenizer(pictures), shuffled, guessed, grid), folder / "puzzles.png")
    return [folder / "puzzles.png"]
