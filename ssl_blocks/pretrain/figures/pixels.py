"""Pictures of objectives that predict pixels: segments, steps and reconstructions."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_blocks.data import ImageData, denormalize
from ssl_blocks.objectives import MaskedAutoencoding, SegmentAutoregression, TwoStreamAutoregression
from ssl_blocks.pretrain.figures.registry import draw_examples
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.values import Serialization
from ssl_blocks.visualize import draw_reconstructions, draw_segments, draw_steps, reading_order_gif, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_IN_STEPS = 3  # images shown step by step


@draw_examples.register
def _(
    objective: SegmentAutoregression | TwoStreamAutoregression, images: Tensor, data: ImageData, folder: Path
) -> list[Path]:
    pictures = denormalize(images, data.mean, data.std).clamp(0, 1)
    grid, generator = objective.tokenizer.grid, seeded_generator("cpu", 0)
    segments = objective.partitioner(len(images), grid, generator=generator)
    draw = objective.serializer(segments, generator=generator)
    shown, figure = _reconstruct(objective, images, data, draw, draw.windows(objective.predict_first)[1])
    save_figure(draw_segments(pictures, segments, grid), folder / "segments.png")
    save_figure(figure, folder / "reconstructions.png")
    rows, first = tuple(range(min(NUM_IN_STEPS, len(images)))), objective.predict_first
    steps = draw_steps(pictures, shown, draw, grid, image_indices=rows, predict_first=first)
    save_figure(steps, folder / "steps.png")
    reading_order_gif(pictures[0], draw, grid, folder / "reading_order.gif")
    return [folder / name for name in ("segments.png", "reconstructions.png", "steps.png", "reading_order.gif")]


@draw_examples.register
def _(objective: MaskedAutoencoding, images: Tensor, data: ImageData, folder: Path) -> list[Path]:
    draw = objective.draw(images, generator=seeded_generator("cpu", 0))
    _, figure = _reconstruct(objective, images, data, draw, draw.windows()[1])
    save_figure(figure, folder / "reconstructions.png")
    return [folder / "reconstructions.png"]


def _reconstruct(
    objective: SegmentAutoregression | TwoStreamAutoregression | MaskedAutoencoding,
    images: Tensor,
    data: ImageData,
    draw: Serialization,
    predicted: slice,
) -> tuple[Tensor, "Figure"]:
    """Pictures of the predictions, the image itself where nothing is predicted; and a figure of them."""
    out = objective(images, draw)
    targets, is_target = objective.target(images), draw.put(out.is_target, predicted)
    guess = torch.where(is_target[..., None], draw.put(out.predictions, predicted), targets)

    def show(values: Tensor) -> Tensor:
        return denormalize(objective.target.to_pixels(values, images), data.mean, data.std).clamp(0, 1)

    pictures, shown = denormalize(images, data.mean, data.std).clamp(0, 1), show(guess)
    return shown, draw_reconstructions(pictures, show(targets), shown, ~is_target, objective.tokenizer.grid)
