"""What all pictures share: panels, outlines, and checks of shapes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor  # plain in the signatures: shapes are checked here, with messages of their own

from ssl_blocks.doors import checked
from ssl_blocks.files import atomically
from ssl_blocks.grid import Grid
from ssl_blocks.values import Serialization
from ssl_blocks.visualize.palette import PAPER

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure
else:
    Figure = Any  # matplotlib is loaded where something is drawn

Array: TypeAlias = NDArray[Any]
Key: TypeAlias = tuple[str, str, str]  # of a legend: face, edge and meaning

DPI = 150


@checked
def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: any matplotlib figure.
        path: where to write; folders are made as needed, an existing file is replaced.
    """
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor=PAPER)


def check_shape(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Compare a shape, in which -1 stands for any length from 1, and a dtype."""
    have = tuple(value.shape)
    if len(have) != len(shape) or any(h != w and (w != -1 or h < 1) for h, w in zip(have, shape, strict=True)):
        raise ValueError(
            f"{name} has shape {have}, expected ({', '.join('any' if w == -1 else str(w) for w in shape)})"
        )
    if dtype is not None and value.dtype != dtype:
        raise ValueError(f"{name} has dtype {value.dtype}, expected {dtype}")


def to_pictures(name: str, images: Tensor, grid: Grid) -> list[Array]:
    """RGB arrays ``[H, W, 3]`` in 0..1.

    Of a volume, and of channels that are an axis of the grid, the middle slice of every cell lies beside the others;
    a signal is a strip.
    """
    if not images.is_floating_point():
        raise ValueError(f"{name} has dtype {images.dtype}, expected floating point in 0..1")
    of_channels = 2 < grid.ndim == images.ndim - 1  # channels are the first axis of the grid
    check_shape(name, images, (-1,) * (grid.ndim + (1 if of_channels else 2)))
    flat = images[:, None] if of_channels else images
    for axis, (cells, length) in enumerate(zip(grid.sizes, flat.shape[2:], strict=True)):
        if cells > length:
            raise ValueError(f"{name} has shape {tuple(images.shape)}, expected a size of at least the grid {grid}")
        if axis < grid.ndim - 2:
            middle = [(2 * cell + 1) * length // (2 * cells) for cell in range(cells)]
            flat = flat.index_select(2 + axis, torch.tensor(middle, device=flat.device))
    if grid.ndim == 1:
        flat = flat[:, :, None].expand(-1, -1, max(1, flat.shape[-1] // 8), -1)
    flat = flat.flatten(2, -3) if grid.ndim > 2 else flat[:, :, None]  # [B, C, slices, H, W]
    shown = flat[:, :3] if flat.shape[1] >= 3 else flat.mean(1, keepdim=True).expand(-1, 3, -1, -1, -1)
    shown = shown.permute(0, 3, 2, 4, 1).flatten(2, 3)
    return list(shown.detach().float().nan_to_num().clamp(0, 1).cpu().numpy())


def to_cells(values: Array, grid: Grid) -> Array:
    """Values of tokens ``[N, ...]`` laid out as `to_pictures` lays out pixels: ``[rows, columns, ...]``."""
    rows = grid.sizes[-2] if grid.ndim > 1 else 1
    cells = values.reshape(-1, rows, grid.sizes[-1], *values.shape[1:])
    return np.moveaxis(cells, 0, 1).reshape(rows, -1, *values.shape[1:])


def steps_of(serialization: Serialization, image_index: int) -> Array:
    """Step of every slot of one image."""
    batch = len(serialization.step)
    if not 0 <= image_index < batch:
        raise ValueError(f"image_index={image_index} must name one of the {batch} images of the serialization")
    return np.asarray(serialization.step[image_index].cpu())


def raster_steps(serialization: Serialization, image_index: int, grid: Grid) -> Array:
    """Step of every token of one image."""
    check_shape("serialization.order", serialization.order, (-1, grid.num_tokens))
    step = np.empty(grid.num_tokens, dtype=int)
    step[serialization.order[image_index].cpu().numpy()] = steps_of(serialization, image_index)
    return step


def new_figure(width: float, height: float, layout: Any = "compressed") -> Figure:
    """A blank figure, in inches."""
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout=layout)


def add_legend(figure: Figure, keys: Sequence[Key], ncols: int, linewidth: float = 1.5) -> None:
    """Explain colours below the panels."""
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(facecolor=f, edgecolor=e, linewidth=linewidth, label=text) for f, e, text in keys]
    figure.legend(handles=handles, ncols=ncols, loc="outside lower center", frameon=False)


def make_panels(
    titles: tuple[str, ...], pictures: list[Array], legend: Sequence[Key] = (), ncols: int = 1
) -> tuple[Figure, Array]:
    """A figure of titled rows, with bare panels in the pictures' aspect."""
    columns, (height, width, _) = len(pictures), pictures[0].shape
    side = 3.0 if columns == 1 else 2.2 if columns <= 4 else 1.6  # inches
    size = (columns * side + 0.4, len(titles) * side * height / width + 0.2 + 0.4 * bool(legend))
    figure = new_figure(*size)
    if legend:
        add_legend(figure, legend, ncols)
    panels: Array = figure.subplots(len(titles), columns, squeeze=False)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for panel, title in zip(panels[:, 0], titles, strict=True):
        panel.set_ylabel(title, fontsize=11)
    return figure, panels


def spread(values: Array, grid: Grid, picture: Array) -> Array:
    """Repeat the values of each token over its pixels: ``[N, c]`` to ``[H, W, c]``; the grid need not divide them."""
    cells = to_cells(values.reshape(grid.num_tokens, -1), grid)
    (height, width), (rows, columns) = picture.shape[:2], cells.shape[:2]
    spread_out: Array = cells[np.arange(height) * rows // height][:, np.arange(width) * columns // width]
    return spread_out


def outline(
    panel: Any, ids: Array, grid: Grid, picture: Array, color: str, width: float, *, closed: bool = False
) -> None:
    """Draw the borders between tokens of different ids; ``closed``: also those of ids but 0 with the outside."""
    from matplotlib.collections import LineCollection

    cells = to_cells(ids, grid)
    scale = np.divide(picture.shape[:2], cells.shape)
    cells = np.pad(cells, 1) if closed else np.pad(cells, 1, mode="edge")
    level = np.argwhere(cells[:-1, 1:-1] != cells[1:, 1:-1])[:, None] + [[0, 0], [0, 1]]
    upright = np.argwhere(cells[1:-1, :-1] != cells[1:-1, 1:])[:, None] + [[0, 0], [1, 0]]
    corners = np.concatenate([level, upright]) * scale
    lines = list(corners[..., ::-1] - 0.5)  # (x, y), and pixel 0 has its centre at 0
    style: dict[str, Any] = {"colors": color, "linewidths": width, "capstyle": "projecting", "clip_on": not closed}
    panel.add_collection(LineCollection(lines, **style))
