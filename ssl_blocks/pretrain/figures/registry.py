"""Pictures of a run: what every kind of objective has to show, and how training went."""

from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path

import torch
from torch import Tensor

from ssl_blocks.data import Augmentation, ImageData, to_float
from ssl_blocks.evaluation import Scores
from ssl_blocks.modes import modes_kept
from ssl_blocks.objectives import Objective
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.values import Views
from ssl_blocks.visualize import draw_curves, save_figure

NUM_EXAMPLES = 6


@torch.no_grad()
def write_figures(
    objective: Objective, data: ImageData, folder: Path, augment: Augmentation | None = None
) -> list[Path]:
    """Write what there is to see of an objective on a few test images; return the files.

    Another kind of objective brings its pictures with ``draw_examples.register``.

    Args:
        objective: on CPU; its mode is left as it was.
        data: images.
        folder: where to.
        augment: makes views for an objective that takes them.
    """
    split = data.train if data.test is None else data.test
    chosen = torch.linspace(0, len(split) - 1, min(NUM_EXAMPLES, len(split))).long()
    images = to_float(split.read(chosen), data.mean, data.std)
    views = augment(images, generator=seeded_generator("cpu", 0)) if augment and objective.takes_views else images
    with modes_kept(objective, training=False):
        return draw_examples(objective, views, data, folder)


@singledispatch
def draw_examples(objective: Objective, images: Tensor | Views, data: ImageData, folder: Path) -> list[Path]:
    """Draw an objective at work on normalised images ``[B, C, H, W]``, or on views of them where it takes views.

    Nothing for kinds that nobody registered.
    """
    return []


def write_curves(folder: Path, scores: Sequence[Scores]) -> Path:
    """Write ``figures/curves.png`` of the run in ``folder``, with the scores of untrained features for comparison."""
    references = {score.name: score.knn for score in scores if score.name != "pretrained encoder"}
    path = folder / "figures" / "curves.png"
    save_figure(draw_curves({folder.name: folder / "metrics.csv"}, references=references), path)
    return path
