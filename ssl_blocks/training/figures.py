"""Pictures of a run: what its objective did to a few images, and how training went."""

from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path

import torch
from torch import Tensor

from ssl_blocks.data import ImageData, denormalize, to_float
from ssl_blocks.evaluation import Scores
from ssl_blocks.objectives import ObjectiveModule, SegmentAutoregression
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.visualize import (
    draw_curves,
    draw_reconstructions,
    draw_segments,
    draw_steps,
    reading_order_gif,
    save_figure,
)

NUM_EXAMPLES = 6
NUM_IN_STEPS = 3  # images shown step by step


@torch.no_grad()
def write_figures(objective: ObjectiveModule, data: ImageData, folder: Path) -> list[Path]:
    """Write what there is to see of an objective on a few test images; return the files.

    Another kind of objective brings its pictures with ``draw_examples.register``.

    Args:
        objective: on CPU; its mode is left as it was.
        data: images.
        folder: where to.
    """
    split = data.train if data.test is None else data.test
    chosen = torch.linspace(0, len(split) - 1, min(NUM_EXAMPLES, len(split))).long()
    images = to_float(split.read(chosen), data.mean, data.std)
    modes = {part: part.training for part in objective.modules()}
    objective.eval()
    try:
        return draw_examples(objective, images, data, folder)
    finally:
        for part, mode in modes.items():
            part.training = mode


@singledispatch
def draw_examples(objective: ObjectiveModule, images: Tensor, data: ImageData, folder: Path) -> list[Path]:
    """Draw an objective at work on normalised images ``[B, C, H, W]``; nothing for kinds that nobody registered."""
    return []


@draw_examples.register
def _(objective: SegmentAutoregression, images: Tensor, data: ImageData, folder: Path) -> list[Path]:
    pictures = denormalize(images, data.mean, data.std).clamp(0, 1)
    grid, generator = objective.tokenizer.grid, seeded_generator("cpu", 0)
    segments = objective.partitioner(len(images), grid, generator=generator)
    draw = objective.serializer(segments, generator=generator)
    out = objective(images, draw)
    _, predicted = draw.windows(objective.predict_first)
    targets, is_target = objective.target(images), draw.put(out.is_target, predicted)
    guess = torch.where(is_target[..., None], draw.put(out.predictions, predicted), targets)

    def show(values: Tensor) -> Tensor:
        return denormalize(objective.target.to_pixels(values, images), data.mean, data.std).clamp(0, 1)

    shown = show(guess)
    figures = {
        "segments.png": draw_segments(pictures, segments, grid),
        "reconstructions.png": draw_reconstructions(pictures, show(targets), shown, ~is_target, grid),
        "steps.png": draw_steps(
            pictures,
            shown,
            draw,
            grid,
            image_indices=tuple(range(min(NUM_IN_STEPS, len(images)))),
            predict_first=objective.predict_first,
        ),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    reading_order_gif(pictures[0], draw, grid, folder / "reading_order.gif")
    return [folder / name for name in (*figures, "reading_order.gif")]


def write_curves(folder: Path, scores: Sequence[Scores]) -> Path:
    """Write ``figures/curves.png`` of the run in ``folder``, with the scores of untrained features for comparison."""
    references = {score.name: score.knn for score in scores if score.name != "pretrained encoder"}
    path = folder / "figures" / "curves.png"
    save_figure(draw_curves({folder.name: folder / "metrics.csv"}, references=references), path)
    return path
