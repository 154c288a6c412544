"""Which images an encoder finds alike."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid
from ssl_blocks.visualize.palette import ALLOWED, INK, SIGNAL
from ssl_blocks.visualize.panels import Figure, check_shape, new_figure, to_pictures

ONE = Grid(1, 1)
SIDE = 1.3  # inches
STEP = 1.06  # from one picture to the next, in widths
SAME, OTHER = "same class", "another class"


@checked
def draw_neighbours(
    queries: Tensor,
    neighbours: Tensor,
    *,
    is_same: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Show images, and beside each those that are nearest in features, the nearest first.

    Args:
        queries: ``[Q, C, H, W]`` float in 0..1.
        neighbours: of each, ``[Q, K, C, H, W]``.
        is_same: whether a neighbour is of the query's class, bool ``[Q, K]``: it is framed by a full line, others by a
            dashed one; ``None`` frames none.
        names: of the queries.

    Returns:
        A figure with a row for each query.

    Raises:
        ValueError: if shapes do not fit each other, naming the argument.

    Examples:
        >>> import torch
        >>> len(draw_neighbours(torch.rand(2, 1, 8, 8), torch.rand(2, 3, 1, 8, 8)).axes[0].images)
        8
    """
    from matplotlib.patches import Patch, Rectangle

    rows = to_pictures("queries", queries, ONE)
    check_shape("neighbours", neighbours, (len(rows), -1, *queries.shape[1:]))
    count = neighbours.shape[1]
    if is_same is not None:
        check_shape("is_same", is_same, (len(rows), count))
    if names is not None and len(names) != len(rows):
        raise ValueError(f"names={tuple(names)} must be one for each of the {len(rows)} queries")
    aspect = rows[0].shape[0] / rows[0].shape[1]
    figure = new_figure(SIDE * (count + 1) + 0.6, SIDE * aspect * len(rows) + 0.7)
    panel = figure.subplots()  # one for all pictures, in widths of one: axes are what takes long to draw
    panel.set(xlim=(0, (count + 1) * STEP), ylim=(len(rows) * (aspect + STEP - 1), 0), aspect="equal")
    panel.set_axis_off()
    for row, picture in enumerate(rows):
        top = row * (aspect + STEP - 1)
        for column, shown in enumerate([picture, *to_pictures("neighbours", neighbours[row], ONE)]):
            left = column * STEP
            panel.imshow(shown, interpolation="nearest", extent=(left, left + 1, top + aspect, top))
            if column and is_same is not None:
                same = bool(is_same[row, column - 1])
                style: Any = {"edgecolor": ALLOWED if same else SIGNAL, "linestyle": "-" if same else (0, (3, 2))}
                panel.add_patch(Rectangle((left, top), 1, aspect, fill=False, linewidth=2.5, clip_on=False, **style))
        name = "" if names is None else names[row]
        panel.text(-0.05, top + aspect / 2, name, fontsize=9, color=INK, ha="right", va="center")
    for column, title in enumerate(("image", "nearest")):
        panel.text(column * STEP + 0.5, -0.06, title, fontsize=10, ha="center", va="bottom")
    if is_same is not None:
        frames = [
            Patch(facecolor="none", edgecolor=ALLOWED, linewidth=2, label=SAME),
            Patch(facecolor="none", edgecolor=SIGNAL, linewidth=2, linestyle="--", label=OTHER),
        ]
        figure.legend(handles=frames, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure
