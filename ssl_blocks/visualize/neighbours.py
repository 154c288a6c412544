"""Which images an encoder finds alike."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid
from ssl_blocks.visualize.panels import ALLOWED, INK, SIGNAL, check_shape, to_pictures

if TYPE_CHECKING:
    import matplotlib.figure

ONE = Grid(1, 1)
SIDE = 1.3  # inches
SAME, OTHER = "same class", "another class"


@checked
def draw_neighbours(
    queries: Tensor,
    neighbours: Tensor,
    *,
    is_same: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> "matplotlib.figure.Figure":
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
        >>> len(draw_neighbours(torch.rand(2, 1, 8, 8), torch.rand(2, 3, 1, 8, 8)).axes)
        8
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = to_pictures("queries", queries, ONE)
    check_shape("neighbours", neighbours, (len(rows), -1, *queries.shape[1:]))
    count = neighbours.shape[1]
    if is_same is not None:
        check_shape("is_same", is_same, (len(rows), count))
    if names is not None and len(names) != len(rows):
        raise ValueError(f"names={tuple(names)} must be one for each of the {len(rows)} queries")
    aspect = rows[0].shape[0] / rows[0].shape[1]
    figure = Figure(figsize=(SIDE * (count + 1) + 0.6, SIDE * aspect * len(rows) + 0.7), layout="compressed")
    panels = figure.subplots(len(rows), count + 1, squeeze=False)
    for row, line in enumerate(panels):
        beside = to_pictures("neighbours", neighbours[row], ONE)
        for column, (panel, picture) in enumerate(zip(line, [rows[row], *beside], strict=True)):
            panel.imshow(picture, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            if column and is_same is not None:
                same = bool(is_same[row, column - 1])
                style: Any = {"color": ALLOWED if same else SIGNAL, "linestyle": "-" if same else (0, (3, 2))}
                panel.spines[:].set(visible=True, linewidth=2.5, capstyle="butt", **style)
        line[0].set_ylabel(
            "" if names is None else names[row], fontsize=9, color=INK, rotation=0, ha="right", va="center"
        )
    panels[0, 0].set_title("image", fontsize=10)
    panels[0, 1].set_title("nearest", fontsize=10)
    if is_same is not None:
        frames = [
            Patch(facecolor="none", edgecolor=ALLOWED, linewidth=2, label=SAME),
            Patch(facecolor="none", edgecolor=SIGNAL, linewidth=2, linestyle="--", label=OTHER),
        ]
        figure.legend(handles=frames, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure
