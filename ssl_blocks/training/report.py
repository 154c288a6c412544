"""What a run shows at its end: figures and a table."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ssl_blocks.data import ImageData, denormalize, to_float
from ssl_blocks.evaluation import Scores
from ssl_blocks.objectives import ObjectiveModule, SegmentAutoregression
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.training.config import RunConfig
from ssl_blocks.visualize import draw_reconstructions, draw_segments, reading_order_gif, save_figure

NUM_EXAMPLES = 6


@torch.no_grad()
def write_figures(objective: ObjectiveModule, data: ImageData, folder: Path) -> list[Path]:
    """Write segments, reading order and reconstructions of a few test images; return the files.

    Objectives that read no segments have none of these figures.
    """
    if not isinstance(objective, SegmentAutoregression):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    split = data.train if data.test is None else data.test
    chosen = torch.linspace(0, len(split) - 1, min(NUM_EXAMPLES, len(split))).long()
    images = to_float(split.read(chosen), data.mean, data.std)
    pictures = denormalize(images, data.mean, data.std).clamp(0, 1)
    grid, generator = objective.tokenizer.grid, seeded_generator("cpu", 0)
    segments = objective.partitioner(len(images), grid, generator=generator)
    draw = objective.serializer(segments, generator=generator)
    save_figure(draw_segments(pictures, segments, grid), folder / "segments.png")
    reading_order_gif(pictures[0], draw, grid, folder / "reading_order.gif")

    objective.eval()
    out = objective(images, draw)
    _, predicted = draw.windows(objective.predict_first)
    is_target = draw.put(out.is_target, predicted)
    guess = torch.where(is_target[..., None], draw.put(out.predictions, predicted), objective.target(images))

    def show(values: Tensor) -> Tensor:
        pixels = objective.target.to_pixels(values, images)
        return denormalize(pixels, data.mean, data.std).clamp(0, 1)

    figure = draw_reconstructions(pictures, show(objective.target(images)), show(guess), ~is_target, grid)
    save_figure(figure, folder / "reconstructions.png")
    return [folder / name for name in ("segments.png", "reading_order.gif", "reconstructions.png")]


def print_report(
    console: Console, config: RunConfig, scores: Sequence[Scores], figures: Sequence[Path], *, seconds: float
) -> None:
    """Print the scores beside each other, and where everything lies."""
    if config.note:
        console.print(f"\n{config.note}")
    if scores:
        console.print(scores_table(config.name, scores))
    else:
        console.print("no scores: the images have no labels, or there are no test images")
    console.print(f"pretrained {config.trainer.epochs} epochs in {seconds:.0f} s; the run is in {config.folder}")
    for path in [*figures, config.folder / "encoder"]:
        console.print(f"  {path}", soft_wrap=True)


def scores_table(title: str, scores: Sequence[Scores]) -> Table:
    """Arrange scores as a table."""
    table = Table(title=f"{title}: accuracy on test images")
    table.add_column("features")
    table.add_column("kNN", justify="right")
    table.add_column(f"linear probe, {scores[0].shots} labels a class", justify="right")
    for row in scores:
        probe = "-" if row.fewshot is None else f"{row.fewshot.mean:.1%} ± {row.fewshot.std:.1%}"
        table.add_row(row.name, f"{row.knn:.1%}", probe)
    return table
