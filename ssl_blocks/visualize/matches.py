"""Which regions of two views are most alike."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_blocks.bounds import Count
from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid
from ssl_blocks.visualize.palette import HUES, INK
from ssl_blocks.visualize.panels import Figure, check_shape, new_figure, to_pictures

ONE = Grid(1, 1)
SIDE = 1.9  # inches


@checked
def draw_matches(
    first: Tensor,
    second: Tensor,
    match: Tensor,
    grids: tuple[Grid, Grid],
    *,
    others: Sequence[Tensor] = (),
    num_regions: Count = 5,
) -> Figure:
    """Number some regions of one view, and put the same numbers where their matches lie in another.

    Several regions may have the same match.

    Args:
        first: views whose regions look for matches, ``[B, C, H, W]`` float in 0..1.
        second: views of the same images in which they find them.
        match: place among the regions of ``second`` for each of ``first``, int ``[B, R]``.
        grids: regions of either view.
        others: further views to show beside them, each ``[B, C, h, w]``.
        num_regions: how many regions to number, at most 7.

    Returns:
        A figure with a row per image.

    Raises:
        ValueError: if shapes do not fit each other, naming the argument, or ``num_regions`` is out of range.

    Examples:
        >>> import torch
        >>> views, match = torch.rand(2, 3, 3, 16, 16), torch.randint(16, (3, 16))
        >>> len(draw_matches(*views, match, (Grid(4, 4), Grid(4, 4))).axes)
        6
    """
    if not 1 <= num_regions <= len(HUES):
        raise ValueError(f"num_regions={num_regions} must be at least 1 and at most {len(HUES)}")
    columns = [to_pictures("first", first, ONE), to_pictures("second", second, ONE)]
    columns += [to_pictures("others", other, ONE) for other in others]
    count = len(columns[0])
    check_shape("second", second, (count, -1, -1, -1))
    check_shape("match", match, (count, grids[0].num_tokens))
    for other in others:
        check_shape("others", other, (count, -1, -1, -1))
    titles = ["large crop: regions", "the other: matches", *["small crop"] * len(others)]
    figure = new_figure(SIDE * len(columns), SIDE * count + 0.3)
    panels = figure.subplots(count, len(columns), squeeze=False)
    total = grids[0].num_tokens
    chosen = [(2 * i + 1) * total // (2 * min(num_regions, total)) for i in range(min(num_regions, total))]
    for row, line in enumerate(panels):
        for panel, pictures, title in zip(line, columns, titles, strict=True):
            panel.imshow(pictures[row], interpolation="nearest")
            panel.axis("off")
            if row == 0:
                panel.set_title(title, fontsize=9)
        found = [int(match[row, place]) for place in chosen]
        for panel, places, grid, view in ((line[0], chosen, grids[0], first), (line[1], found, grids[1], second)):
            _number(panel, places, grid, (view.shape[2], view.shape[3]))
    return figure


def _number(panel: Any, places: list[int], grid: Grid, size: tuple[int, int]) -> None:
    """Frame the cells at these places and number them from 1; a cell that is named twice has frames in frames."""
    from matplotlib.patches import Rectangle

    high, wide = size[0] / grid.height, size[1] / grid.width
    for place in dict.fromkeys(places):
        row, column = divmod(place, grid.width)
        numbers = [i for i, other in enumerate(places) if other == place]
        for depth, number in enumerate(numbers):
            inset = (0.04 + 0.09 * depth) * min(high, wide)
            corner = (column * wide - 0.5 + inset, row * high - 0.5 + inset)
            size_inside = (wide - 2 * inset, high - 2 * inset)
            panel.add_patch(Rectangle(corner, *size_inside, edgecolor=HUES[number], linewidth=2, facecolor="none"))
        text = panel.text(
            (column + 0.5) * wide - 0.5,
            (row + 0.5) * high - 0.5,
            " ".join(str(number + 1) for number in numbers),
            fontsize=8 if len(numbers) < 3 else 6,
            color=INK,
            ha="center",
            va="center",
        )
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.2})
