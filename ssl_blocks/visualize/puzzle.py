"""Patch puzzles: shuffled, as guessed, and solved."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid
from ssl_blocks.visualize.palette import ALLOWED, PAPER, SIGNAL
from ssl_blocks.visualize.panels import Array, Figure, check_shape, make_panels, to_pictures

EMPTY = -1  # no patch lies there
BLANK = "#DDDDDD"


@checked
def draw_puzzles(patches: Tensor, shuffled: Tensor, guessed: Tensor, grid: Grid) -> Figure:
    """Show puzzles as they were shuffled, as somebody put them together, and solved.

    In the middle row, patches that lie in their own place are framed in another colour than those that do not; grey
    places are those where no patch was put.

    Args:
        patches: ``[B, N, C, p, q]`` float in 0..1, in raster order.
        shuffled: ``[B, N]`` int64, the patch at every place of the shuffled puzzle.
        guessed: likewise of the guess, -1 where no patch lies: what ``PositionTarget.arrange`` returns.
        grid: patches of an image.

    Returns:
        A figure with rows puzzle, guess and solution, and one column per image.

    Raises:
        ValueError: if shapes do not fit each other, naming the argument, or there is no such patch.

    Examples:
        >>> patches, places = torch.rand(2, 4, 3, 5, 5), torch.tensor([[3, 1, 2, 0], [2, 3, 0, 1]])
        >>> figure = draw_puzzles(patches, places, torch.tensor([[0, 1, 2, 3], [0, -1, 2, 1]]), Grid(2, 2))
        >>> [panel.get_title() for panel in figure.axes[2:4]]
        ['4 of 4 right', '2 of 4 right']
    """
    check_shape("patches", patches, (-1, grid.num_tokens, -1, -1, -1))
    batch, num, channels, *sides = patches.shape
    for name, places in (("shuffled", shuffled), ("guessed", guessed)):
        check_shape(name, places, (batch, num), torch.int64)
        if not ((places >= EMPTY) & (places < num)).all():
            raise ValueError(f"{name} must hold indices of the {num} patches, or {EMPTY} for a place without one")
    flat = np.stack(to_pictures("patches", patches.reshape(batch * num, channels, *sides), Grid(1, 1)))
    pieces = flat.reshape(batch, num, *flat.shape[1:])
    solved = np.arange(num)
    boards = [
        [_board(own, places, grid) for places in (mixed, guess, solved)]
        for own, mixed, guess in zip(pieces, shuffled.cpu().numpy(), guessed.cpu().numpy(), strict=True)
    ]
    keys = ((PAPER, ALLOWED, "in its place"), (PAPER, SIGNAL, "elsewhere"), (BLANK, BLANK, "no patch was put there"))
    puzzles = [column[0] for column in boards]
    figure, panels = make_panels(("puzzle", "guess", "solution"), puzzles, keys, ncols=3 if batch > 2 else 1)
    for panel, board in zip(panels.T.flat, (board for column in boards for board in column), strict=True):
        panel.imshow(board, interpolation="nearest")
    for panel, guess in zip(panels[1], guessed.cpu().numpy(), strict=True):
        _frame(panel, guess, grid, (sides[0], sides[1]))
        panel.set_title(f"{int((guess == solved).sum())} of {num} right", fontsize=10)
    return figure


def _gutter(sides: tuple[int, ...]) -> int:
    """Pixels between patches."""
    return max(1, round(min(sides) / 6))


def _board(pieces: Array, places: Array, grid: Grid) -> Array:
    """Lay out patches ``[N, p, q, 3]`` with gutters between and around them."""
    from matplotlib.colors import to_rgb

    height, width = pieces.shape[1:3]
    gap = _gutter((height, width))
    board = np.ones((grid.height * (height + gap) + gap, grid.width * (width + gap) + gap, 3))
    for place, patch in enumerate(places):
        row, column = divmod(place, grid.width)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        board[top : top + height, left : left + width] = to_rgb(BLANK) if patch == EMPTY else pieces[patch]
    return board


def _frame(panel: Any, guess: Array, grid: Grid, sides: tuple[int, int]) -> None:
    """Frame every patch by whether it lies in its place."""
    from matplotlib.patches import Rectangle

    height, width = sides
    gap = _gutter(sides)
    for place, patch in enumerate(guess):
        if patch == EMPTY:
            continue
        row, column = divmod(place, grid.width)
        corner = (column * (width + gap) + gap - 0.5, row * (height + gap) + gap - 0.5)
        color = ALLOWED if patch == place else SIGNAL
        panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1.5))
