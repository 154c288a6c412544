"""What was to be predicted and what was, at once or step by step."""

import numpy as np
import torch
from torch import Tensor

from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid
from ssl_blocks.values import Serialization
from ssl_blocks.visualize.palette import PAPER, SIGNAL
from ssl_blocks.visualize.panels import (
    Array,
    Figure,
    check_shape,
    make_panels,
    outline,
    raster_steps,
    spread,
    to_pictures,
)

MAX_COLUMNS = 7
LATER = "#C6DBEF"  # no grey, which might be the image's own


@checked
def draw_reconstructions(images: Tensor, targets: Tensor, predictions: Tensor, known: Tensor, grid: Grid) -> Figure:
    """Show images, what was to be predicted of them, and what was predicted.

    Tokens that were given are outlined. In the row of predictions they show the image itself, pale and grey, for
    nothing was predicted there.

    Args:
        images: ``[B, C, H, W]`` float in 0..1.
        targets: pictures of the targets, of the same shape; values outside 0..1 are clipped.
        predictions: pictures of the predictions, likewise.
        known: bool ``[B, N]``, ``True`` for tokens that were given and never predicted.
        grid: tokens of an image.

    Returns:
        A figure with rows image, target and prediction, and one column per image.

    Raises:
        ValueError: if shapes do not fit each other, naming the argument.

    Examples:
        >>> images, known = torch.rand(2, 1, 8, 8), torch.rand(2, 16) < 0.25
        >>> len(draw_reconstructions(images, images, images * 0.9, known, Grid(4, 4)).axes)
        6
    """
    pictures = to_pictures("images", images, grid)
    check_shape("targets", targets, tuple(images.shape))
    check_shape("predictions", predictions, tuple(images.shape))
    check_shape("known", known, (len(pictures), grid.num_tokens), torch.bool)
    columns = zip(
        pictures, to_pictures("targets", targets, grid), to_pictures("predictions", predictions, grid), strict=True
    )
    label = "given, not predicted" if known.any() else "given, not predicted: none"
    figure, panels = make_panels(("image", "target", "prediction"), pictures, [("#DDDDDD", SIGNAL, label)])
    for column, (picture, target, prediction) in enumerate(columns):
        given = known[column].cpu().numpy()
        pale = 0.5 + 0.5 * picture.mean(-1, keepdims=True)
        panels[0, column].imshow(picture)
        panels[1, column].imshow(target)
        panels[2, column].imshow(np.where(spread(given, grid, picture), pale, prediction))
        for row in (1, 2):
            outline(panels[row, column], given, grid, picture, SIGNAL, 1.5, closed=True)
    return figure


@checked
def draw_steps(
    images: Tensor,
    predictions: Tensor,
    serialization: Serialization,
    grid: Grid,
    *,
    image_indices: tuple[int, ...] = (0,),
    predict_first: bool = False,
) -> Figure:
    """Show an image being predicted step by step, a column per step.

    What has been read is the image itself; the tokens that this step predicts are framed, and hold the prediction;
    what comes later is pale blue. The first column is the whole image. Of many steps some are shown, evenly spaced, the
    first and the last among them.

    Args:
        images: ``[B, C, H, W]`` float in 0..1.
        predictions: pictures of the predictions, of the same shape.
        serialization: order and steps of the same images.
        grid: tokens of an image.
        image_indices: which images of the batch, a row each.
        predict_first: whether the first step was predicted, too.

    Returns:
        A figure with a row per image.

    Raises:
        ValueError: if shapes do not fit each other, or there is no such image.

    Examples:
        >>> import ssl_blocks as sb
        >>> images, grid = torch.rand(2, 3, 16, 16), Grid(4, 4)
        >>> draw = sb.RandomSerializer()(sb.SquarePartitioner(sides=(2,))(images, grid))
        >>> figure = draw_steps(images, images * 0.5, draw, grid)
        >>> [panel.get_title() for panel in figure.axes]
        ['image', 'step 1', 'step 2', 'step 3']
    """
    from matplotlib.colors import to_rgb

    pictures = to_pictures("images", images, grid)
    check_shape("predictions", predictions, tuple(images.shape))
    check_shape("serialization.order", serialization.order, (len(pictures), grid.num_tokens))
    guesses = to_pictures("predictions", predictions, grid)
    rows = [(index, raster_steps(serialization, index, grid)) for index in image_indices]
    columns = max(len(_chosen(step, predict_first)) for _, step in rows) + 1
    keys = ((PAPER, SIGNAL, "predicted in this step, from what was read before"), (LATER, LATER, "not read yet"))
    ncols = 1 if columns < 5 else 2
    figure, panels = make_panels(("",) * len(rows), [pictures[0]] * columns, keys, ncols)
    later_color = np.array(to_rgb(LATER))
    for panel in panels.flat:
        panel.axis("off")
    for row, (index, step) in zip(panels, rows, strict=True):
        picture = pictures[index]
        row[0].imshow(picture)
        row[0].set_title("image", fontsize=10)
        for panel, number in zip(row[1:], _chosen(step, predict_first), strict=False):
            now, later = (spread(mask, grid, picture) for mask in (step == number, step > number))
            panel.imshow(np.where(later, later_color, np.where(now, guesses[index], picture)))
            panel.set_title(f"step {number}", fontsize=10)
            outline(panel, step == number, grid, picture, SIGNAL, 1.5, closed=True)
    return figure


def _chosen(step: Array, predict_first: bool) -> list[int]:
    first, last = (0 if predict_first else 1), int(step.max())
    count = min(MAX_COLUMNS, last - first + 1)
    return sorted({int(number) for number in np.linspace(first, last, count).round()}) if count > 0 else []
