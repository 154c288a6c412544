"""Pictures of objectives that compare views: the crops, and which regions of two of them match."""

from pathlib import Path

from ssl_blocks.data import ImageData, denormalize
from ssl_blocks.objectives import ViewRegionDistillation
from ssl_blocks.parts.region_loss import match_regions
from ssl_blocks.pretrain.figures.registry import draw_examples
from ssl_blocks.values import Views
from ssl_blocks.visualize import draw_matches, save_figure

NUM_SHOWN, NUM_LOCAL = 4, 3  # images; small crops of each


@draw_examples.register
def _(objective: ViewRegionDistillation, images: Views, data: ImageData, folder: Path) -> list[Path]:
    crops = [crop[:NUM_SHOWN] for crop in images.images]
    if len(crops) < 2:
        return []
    pictures = [denormalize(crop, data.mean, data.std).clamp(0, 1) for crop in crops]
    student = objective.encoder.regions(crops[0])
    teacher = objective.teacher.encoder.regions(crops[1])
    figure = draw_matches(
        pictures[0],
        pictures[1],
        match_regions(student.map, teacher.map),
        (student.grid, teacher.grid),
        others=pictures[images.num_global :][:NUM_LOCAL],
    )
    save_figure(figure, folder / "regions.png")
    return [folder / "regions.png"]
