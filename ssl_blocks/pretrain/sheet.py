"""A sheet of small pictures of an objective at work: made where it trains, and drawn when they have come from there."""

from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_blocks.data import ImageData
from ssl_blocks.files import atomically
from ssl_blocks.grid import Grid
from ssl_blocks.objectives import Objective, PatchPuzzle, SegmentPrediction, WeightedSum
from ssl_blocks.parts.target import PictureTarget, PositionTarget
from ssl_blocks.pretrain.figures import in_place, look_at_places, pictures_of
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.visualize.feature_maps import principal_colors
from ssl_blocks.visualize.panels import Array, spread, to_pictures

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

CELL, GAP, TITLE = 112, 4, 18  # pixels: side of a picture, room between two, height of a title


class Row(NamedTuple):
    """A row of a sheet.

    Attributes:
        title: above it.
        values: pictures ``[B, C, H, W]`` in 0..1, or numbers ``[B, N]`` or features ``[B, N, D]`` of tokens.
        grid: of the tokens.
    """

    title: str
    values: Tensor
    grid: Grid


@torch.no_grad()
def make_rows(objective: Objective, images: Tensor, data: ImageData) -> list[Row]:
    """Compute what there is to see of normalised images ``[B, C, H, W]``, without reading any of it.

    The images, what the objective makes of them (`show_rows`), and what the encoder that a run leaves behind makes of
    their places: its features as colours, and where its class token looks. Training mode and autocast are the caller's.
    """
    rows = show_rows(objective, images, data)
    places = look_at_places(objective, images)
    if places is not None:
        features, grid, attention = places
        rows.append(Row("features", features, grid))
        if attention is not None:
            rows.append(Row("attention", attention, grid))
    return [Row("image", pictures_of(images, data), rows[0].grid if rows else Grid(1, 1)), *rows]


@singledispatch
def show_rows(objective: Objective, images: Tensor, data: ImageData) -> list[Row]:
    """Rows of one kind of objective; register your own by ``show_rows.register``.

    Kinds that nobody registered show what is given and their predictions in place, where their target has pictures.
    """
    target = getattr(objective, "target", None)
    if objective.takes_views or objective.tokenizer is None or not isinstance(target, PictureTarget):
        return []
    draw = objective.draw(images, generator=seeded_generator(images.device, 0))
    shown, _, hidden = in_place(objective, images, draw, data)
    grid = objective.tokenizer.grid
    return [Row("given, white", (~hidden).float(), grid), Row("prediction", shown, grid)]


@show_rows.register
def _(objective: SegmentPrediction, images: Tensor, data: ImageData) -> list[Row]:
    rows = show_rows.dispatch(Objective)(objective, images, data)
    draw = objective.draw(images, generator=seeded_generator(images.device, 0))
    if draw.step_sizes is not None and len(draw.step_sizes) < 3:  # two steps: given and predicted
        return rows
    order = torch.zeros_like(draw.step).scatter(1, draw.order, draw.step).float()
    return [Row("reading order, dark first", order, objective.tokenizer.grid), *rows[1:]]


@show_rows.register
def _(objective: PatchPuzzle, images: Tensor, data: ImageData) -> list[Row]:
    if not isinstance(objective.target, PositionTarget):
        return []
    predictions = objective(images, objective.keep_all(images)).predictions
    solved = objective.target.to_pixels(predictions, images)
    return [Row("solved as guessed", pictures_of(solved, data), objective.tokenizer.grid)]


@show_rows.register
def _(objective: WeightedSum, images: Tensor, data: ImageData) -> list[Row]:
    return [
        Row(f"{name}: {row.title}", row.values, row.grid)
        for name, part in objective.parts.items()
        if not part.reads_shared and not part.takes_views
        for row in show_rows(part, images, data)
    ]


def draw_sheet(rows: Sequence[Row], path: Path) -> None:
    """Write rows, on the CPU by now, as one PNG."""
    from PIL import Image, ImageDraw, ImageFont

    lines = [(row.title, _cells(row)) for row in rows]
    width = GAP + max(sum(cell.width + GAP for cell in cells) for _, cells in lines)
    sheet = Image.new("RGB", (width, sum(TITLE + cells[0].height + GAP for _, cells in lines)), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(12), 0
    for title, cells in lines:
        pen.text((GAP, top + 1), title, "#222222", font)
        left, top = GAP, top + TITLE
        for cell in cells:
            sheet.paste(cell, (left, top))
            left += cell.width + GAP
        top += cells[0].height + GAP
    with atomically(path) as temporary:
        sheet.save(temporary, "PNG")


def _cells(row: Row) -> "list[Picture]":
    from PIL import Image

    cells = []
    for picture in _pictures(row):
        image = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
        scale = CELL / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        cells.append(image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX))
    return cells


def _pictures(row: Row) -> list[Array]:
    """Arrays ``[H, W, 3]`` in 0..1."""
    values = row.values.float()
    if values.ndim == 4:
        return to_pictures(row.title, values, row.grid)
    if values.ndim == 2:  # each image by itself
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        values = ((values - low) / torch.where(high > low, high - low, 1.0))[..., None].expand(-1, -1, 3)
    else:
        values = principal_colors(values)
    height, width = (row.grid.sizes[-2] if row.grid.ndim > 1 else 1), row.grid.sizes[-1]
    blank = np.zeros((height * CELL // max(height, width) or 1, width * CELL // max(height, width) or 1, 3))
    return [spread(one.numpy(), row.grid, blank) for one in values]
