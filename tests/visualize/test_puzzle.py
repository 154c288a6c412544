"""Pictures of puzzles show the right patch at the right place, and say which guesses are right."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

import ssl_blocks as sb
from ssl_blocks.visualize import draw_puzzles, palette, puzzle

GRID = sb.Grid(2, 3)
SHUFFLED = torch.tensor([[5, 0, 3, 1, 4, 2]])
GUESSED = torch.tensor([[0, 2, -1, 3, 5, -1]])  # places 0 and 3 are right


def patches(channels: int = 3, height: int = 6, width: int = 4) -> torch.Tensor:
    """Patch i is of one shade, a tenth of i."""
    shade = torch.arange(6) / 10
    return shade[None, :, None, None, None].expand(1, -1, channels, height, width).clone()


def shades(figure, row: int, height: int = 6, width: int = 4) -> list[float]:
    """What lies in the middle of every place."""
    board = np.asarray(figure.axes[row].images[0].get_array())
    gap = (board.shape[0] - 2 * height) // 3
    assert board.shape == (2 * height + 3 * gap, 3 * width + 4 * gap, 3)
    rows = [gap + r * (height + gap) + height // 2 for r in range(2)]
    columns = [gap + c * (width + gap) + width // 2 for c in range(3)]
    return [float(board[y, x, 0]) for y in rows for x in columns]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_row_lays_the_patches_out_as_it_was_told(channels: int) -> None:
    figure = draw_puzzles(patches(channels), SHUFFLED, GUESSED, GRID)
    blank = to_rgb(puzzle.BLANK)[0]
    assert shades(figure, 0) == pytest.approx([i / 10 for i in SHUFFLED[0].tolist()])
    assert shades(figure, 1) == pytest.approx([blank if i < 0 else i / 10 for i in GUESSED[0].tolist()])
    assert shades(figure, 2) == pytest.approx([i / 10 for i in range(6)])
    assert [axes.get_ylabel() for axes in figure.axes] == ["puzzle", "guess", "solution"]


def test_frames_say_which_guesses_are_right() -> None:
    figure = draw_puzzles(patches(), SHUFFLED, GUESSED, GRID)
    frames = figure.axes[1].patches
    colors = [frame.get_edgecolor()[:3] for frame in frames]
    right, wrong = to_rgb(palette.ALLOWED), to_rgb(palette.SIGNAL)
    assert colors == [right, wrong, right, wrong]  # of the places 0, 1, 3 and 4
    gap = 1
    corners = [((c * (4 + gap)) + gap - 0.5, (r * (6 + gap)) + gap - 0.5) for r, c in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert [frame.get_xy() for frame in frames] == corners
    assert all((frame.get_width(), frame.get_height()) == (4, 6) for frame in frames)
    assert figure.axes[1].get_title() == "2 of 6 right"
    assert not figure.axes[0].patches
    assert not figure.axes[2].patches


def test_a_column_for_every_image() -> None:
    both = patches().expand(2, -1, -1, -1, -1)
    guesses = torch.cat([GUESSED, torch.arange(6)[None]])
    figure = draw_puzzles(both, SHUFFLED.expand(2, -1), guesses, GRID)
    assert [axes.get_title() for axes in figure.axes] == ["", "", "2 of 6 right", "6 of 6 right", "", ""]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["in its place", "elsewhere", "no patch was put there"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patches": torch.rand(1, 5, 3, 4, 4)}, r"patches has shape \(1, 5, 3, 4, 4\), expected \(any, 6, any"),
        ({"shuffled": SHUFFLED[:, :5]}, r"shuffled has shape \(1, 5\), expected \(1, 6\)"),
        ({"guessed": GUESSED.float()}, "guessed has dtype torch.float32, expected torch.int64"),
        ({"guessed": GUESSED + 5}, "guessed must hold indices of the 6 patches, or -1"),
        ({"shuffled": SHUFFLED - 2}, "shuffled must hold indices of the 6 patches, or -1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    given = {"patches": patches(), "shuffled": SHUFFLED, "guessed": GUESSED, "grid": GRID} | arguments
    with pytest.raises(ValueError, match=message):
        draw_puzzles(**given)
