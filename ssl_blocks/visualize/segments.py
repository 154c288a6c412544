"""Segments of images, by colour and shade."""

import numpy as np
from torch import Tensor

from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid
from ssl_blocks.values import Segments
from ssl_blocks.visualize.palette import HUES, INK, PAPER
from ssl_blocks.visualize.panels import Array, Figure, check_shape, make_panels, outline, spread, to_pictures


@checked
def draw_segments(images: Tensor, segments: Segments, grid: Grid) -> Figure:
    """Show each image above its segments: a colour per coarsest partition, a shade per segment.

    Thin lines separate segments, thick ones partitions. There are seven colours; more partitions (or segments,
    where there is one level only) use them again in other shades.

    Args:
        images: ``[B, C, H, W]`` float in 0..1; of more than three channels the first three are shown.
        segments: of the same ``B`` images.
        grid: tokens of an image.

    Returns:
        A figure with one column per image.

    Raises:
        ValueError: if shapes do not fit each other, naming the argument.

    Examples:
        >>> import torch
        >>> from ssl_blocks import SquarePartitioner
        >>> segments = SquarePartitioner(sides=(2, 4))(torch.rand(3, 3, 32, 32), Grid(8, 8))
        >>> len(draw_segments(torch.rand(3, 3, 32, 32), segments, Grid(8, 8)).axes)
        6
    """
    pictures = to_pictures("images", images, grid)
    check_shape("segments.levels[0]", segments.levels[0], (len(pictures), grid.num_tokens))
    figure, panels = make_panels(("image", "segments"), pictures)
    for column, picture in enumerate(pictures):
        levels = [ids[column].cpu().numpy() for ids in segments.levels]
        colors = spread(_segment_colors(levels[0], levels[-1]), grid, picture)
        panels[0, column].imshow(picture)
        panels[1, column].imshow(0.65 * colors + 0.35 * (0.25 + 0.75 * picture.mean(-1, keepdims=True)))
        outline(panels[1, column], levels[0], grid, picture, INK, 1.8)
        outline(panels[1, column], levels[0], grid, picture, PAPER, 0.9)
        if len(levels) > 1:
            outline(panels[1, column], levels[-1], grid, picture, INK, 3.0)
    return figure


def _segment_colors(segment: Array, partition: Array) -> Array:
    """Colour ``[N, 3]``: a hue per partition, and a shade for each segment that shares the hue."""
    from matplotlib.colors import to_rgb

    hue = (partition + 2 * (partition // len(HUES))) % len(HUES)  # shifted, or rows of 7 ids would make stripes
    colors = np.empty((len(segment), 3))
    for h in np.unique(hue):
        ids = np.unique(segment[hue == h])
        for rank, i in enumerate(ids):
            lightness = (2 * rank + 1) / len(ids) - 1  # -1 dark, 1 light
            toward = float(lightness > 0)
            colors[segment == i] = toward + (np.array(to_rgb(HUES[h])) - toward) * (1 - 0.6 * abs(lightness))
    return colors
