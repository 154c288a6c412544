from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image, ImageSequence

import ssl_blocks as sb
from ssl_blocks import visualize
from ssl_blocks.visualize import palette, panels, reading_order, reconstructions
from tests.recipes import blank

GRID = sb.Grid(4, 4)
LEFT_RIGHT = torch.tensor([[0, 0, 1, 1] * 4])
QUARTERS = torch.tensor([[0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2])


def gray(batch: int = 1, channels: int = 3, size: int = 16, level: float = 0.5) -> torch.Tensor:
    return torch.full((batch, channels, size, size), level)


class Rendered:
    """A figure as pixels, with colours at places given in a panel's own coordinates."""

    def __init__(self, figure: Any) -> None:
        self.figure = figure
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(panels.DPI)
        canvas.draw()
        self.pixels = np.asarray(canvas.buffer_rgba())[..., :3] / 255

    def at(self, panel: int, x: float, y: float) -> np.ndarray[Any, Any]:
        column, row = self.figure.axes[panel].transData.transform((x, y))
        return self.pixels[self.pixels.shape[0] - 1 - int(row), int(column)]

    def token(self, panel: int, position: int, grid: sb.Grid = GRID, cell: int = 4) -> np.ndarray[Any, Any]:
        """Colour in the middle of a token."""
        row, column = divmod(position, grid.width)
        return self.at(panel, (column + 0.5) * cell - 0.5, (row + 0.5) * cell - 0.5)


def close(a: Any, b: Any, tolerance: float = 0.02) -> bool:
    return bool(np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance)


# --- segments ---------------------------------------------------------------------------------------------------


def test_tokens_have_one_colour_per_segment_and_a_hue_per_partition() -> None:
    segments = sb.Segments(levels=(QUARTERS, LEFT_RIGHT), counts=(4, 2))
    shown = Rendered(visualize.draw_segments(gray(), segments, GRID))
    colors = np.stack([shown.token(1, i) for i in range(16)])
    for one in range(4):
        own = colors[QUARTERS[0] == one]
        assert close(own, own[0])
        for other in range(one):
            assert not close(own[0], colors[QUARTERS[0] == other][0], 0.1)
    # orange partition: red above blue; blue partition: the reverse; in every shade
    assert (colors[LEFT_RIGHT[0] == 0][:, 0] > colors[LEFT_RIGHT[0] == 0][:, 2]).all()
    assert (colors[LEFT_RIGHT[0] == 1][:, 0] < colors[LEFT_RIGHT[0] == 1][:, 2]).all()


def test_lines_run_between_segments_and_thick_dark_ones_between_partitions() -> None:
    segments = sb.Segments(levels=(QUARTERS, LEFT_RIGHT), counts=(4, 2))
    shown = Rendered(visualize.draw_segments(gray(), segments, GRID))
    partition, inside = shown.at(1, 7.5, 2), shown.at(1, 3.5, 2)
    segment = max((shown.at(1, 2, 7.5 + t) for t in (-0.05, 0.0, 0.05)), key=lambda color: color.min())
    assert close(partition, to_rgb(palette.INK), 0.1)
    assert segment.min() > partition.max() + 0.3, "a segment's border is pale where a partition's is dark"
    assert close(inside, shown.token(1, 0))

    def dark(x: float, y: float, dx: float, dy: float) -> int:
        steps = np.linspace(-1.5, 1.5, 200)
        return sum(shown.at(1, x + t * dx, y + t * dy).max() < 0.2 for t in steps)

    assert dark(7.5, 2, 1, 0) > 2 * dark(2, 7.5, 0, 1)


def test_no_line_leaves_its_panel() -> None:
    segments = sb.Segments(levels=(QUARTERS, LEFT_RIGHT), counts=(4, 2))
    shown = Rendered(visualize.draw_segments(gray(), segments, GRID))
    for i in range(16):
        assert close(shown.at(0, 15, i), 0.5)
        assert close(shown.at(0, i, 15), 0.5)
    assert close(shown.at(1, 7.5, -0.8), 1.0)


@pytest.mark.parametrize("counts", [(64,), (64, 16)])
def test_sixty_four_segments_all_differ(counts: tuple[int, ...]) -> None:
    grid = sb.Grid(8, 8)
    sides = (1,) if len(counts) == 1 else (1, 2)
    segments = sb.SquarePartitioner(sides=sides)(blank(1), grid)
    shown = Rendered(visualize.draw_segments(gray(size=32), segments, grid))
    colors = np.stack([shown.token(1, i, grid) for i in range(64)])
    different = np.abs(colors[:, None] - colors[None]).max(-1) + np.eye(64)
    assert different.min() > 0
    if len(counts) == 1:
        for a, b in [(i, i + 1) for i in range(63) if i % 8 < 7] + [(i, i + 8) for i in range(56)]:
            assert different[a, b] > 0.08, f"neighbours {a} and {b} look alike"


@pytest.mark.parametrize(
    ("channels", "expected"), [(1, (0.1,) * 3), (2, (0.15,) * 3), (3, (0.1, 0.2, 0.3)), (5, (0.1, 0.2, 0.3))]
)
def test_any_number_of_channels(channels: int, expected: tuple[float, ...]) -> None:
    image = torch.linspace(0.1, 0.1 * channels, channels)[None, :, None, None].expand(1, -1, 8, 8)
    shown = Rendered(visualize.draw_segments(image, sb.TokenPartitioner()(blank(1), GRID), GRID))
    assert close(shown.token(0, 5, cell=2), expected)


def test_rectangular_grids_and_many_images_are_not_cut_off() -> None:
    grid = sb.Grid(2, 3)
    figure = visualize.draw_segments(gray(8, size=12)[:, :, :8], sb.TokenPartitioner()(blank(8), grid), grid)
    shown = Rendered(figure)
    height, width, _ = shown.pixels.shape
    assert len(figure.axes) == 16
    for panel in figure.axes:
        box = panel.get_tightbbox(figure.canvas.get_renderer())
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    assert [panel.get_ylabel() for panel in figure.axes if panel.get_ylabel()] == ["image", "segments"]


def test_images_of_any_precision_and_with_gradients() -> None:
    images = gray().to(torch.bfloat16).requires_grad_()
    assert close(
        Rendered(visualize.draw_segments(images, sb.TokenPartitioner()(blank(1), GRID), GRID)).token(0, 3), 0.5
    )


# --- reconstructions --------------------------------------------------------------------------------------------


def test_given_tokens_are_pale_and_outlined_and_others_are_the_prediction() -> None:
    known = torch.zeros(1, 16, dtype=torch.bool)
    known[0, [0, 5]] = True
    figure = visualize.draw_reconstructions(gray(level=0.2), gray(level=0.4), gray(level=0.8), known, GRID)
    shown = Rendered(figure)
    for position in range(16):
        assert close(shown.token(0, position), 0.2)
        assert close(shown.token(1, position), 0.4)
        assert close(shown.token(2, position), 0.6 if known[0, position] else 0.8)
    signal = to_rgb(palette.SIGNAL)
    for panel in (1, 2):
        for x, y in ((3.5, 2), (2, 3.5), (-0.5, 2), (2, -0.5), (7.5, 6), (6, 7.5)):
            assert close(shown.at(panel, x, y), signal, 0.1), f"no outline at {x}, {y}"
        for x, y in ((11.5, 2), (7.5, 2), (14, 7.5)):
            assert not close(shown.at(panel, x, y), signal, 0.3)
    assert not close(shown.at(0, 3.5, 2), signal, 0.3)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["given, not predicted"]
    assert [panel.get_ylabel() for panel in figure.axes] == ["image", "target", "prediction"]


def test_neighbours_that_are_given_share_one_outline() -> None:
    known = torch.zeros(1, 16, dtype=torch.bool)
    known[0, [5, 6]] = True
    shown = Rendered(visualize.draw_reconstructions(gray(), gray(), gray(), known, GRID))
    assert close(shown.at(1, 7.5, 6), 0.5)


def test_nothing_given_and_values_outside_the_range() -> None:
    known = torch.zeros(2, 16, dtype=torch.bool)
    predictions = gray(2, level=1.7)
    predictions[1] = torch.nan
    figure = visualize.draw_reconstructions(gray(2), gray(2, level=-1.0), predictions, known, GRID)
    shown = Rendered(figure)
    assert close(shown.token(2, 0), 0.0)
    assert close(shown.token(4, 0), 1.0)
    assert close(shown.token(5, 0), 0.0)
    assert "none" in figure.legends[0].get_texts()[0].get_text()


# --- masks ------------------------------------------------------------------------------------------------------


def masks_of(
    partitioner: sb.parts.SegmentPartitioner, num_prefix: int = 0
) -> tuple[sb.AttentionMasks, sb.Serialization]:
    draw = sb.RandomSerializer()(
        partitioner(blank(2), GRID, generator=torch.Generator().manual_seed(0)),
        generator=torch.Generator().manual_seed(1),
    )
    return sb.SegmentCausalMask()(draw, *draw.windows(), num_prefix=num_prefix), draw


@pytest.mark.parametrize(
    ("partitioner", "num_prefix"), [(sb.SquarePartitioner(sides=(2,)), 2), (sb.BlobPartitioner(counts=(4,)), 0)]
)
def test_masks_show_who_may_attend(partitioner: sb.parts.SegmentPartitioner, num_prefix: int) -> None:
    masks, draw = masks_of(partitioner, num_prefix)
    figure = visualize.draw_masks(masks, draw, image_index=1)
    shown = Rendered(figure)
    allowed, blocked = to_rgb(palette.ALLOWED), to_rgb(palette.BLOCKED)
    for panel, name in enumerate(("source", "target", "memory")):
        mask = getattr(masks, name)
        mask = mask[-1, 0]  # index 1, or the one that all images share
        for query in range(mask.shape[0]):
            for key in range(mask.shape[1]):
                assert close(shown.at(panel, key, query), allowed if mask[query, key] else blocked, 0.05)
        assert figure.axes[panel].get_title().startswith(name)
        assert "query" in figure.axes[panel].get_ylabel()
        assert "key" in figure.axes[panel].get_xlabel()


def test_masks_carry_step_numbers_and_lines_between_steps() -> None:
    masks, draw = masks_of(sb.SquarePartitioner(sides=(2,)), num_prefix=1)
    source, target, memory = visualize.draw_masks(masks, draw).axes
    assert [label.get_text() for label in source.get_xticklabels()] == ["P", "0", "1", "2"]
    assert [label.get_text() for label in target.get_yticklabels()] == ["1", "2", "3"]
    assert [label.get_text() for label in memory.get_xticklabels()] == ["P", "0", "1", "2"]
    assert [label.get_text() for label in memory.get_yticklabels()] == ["1", "2", "3"]
    across = sorted(line.get_xdata()[0] for line in source.lines if line.get_xdata()[0] == line.get_xdata()[1])
    assert across == [0.5, 4.5, 8.5]


def test_masks_of_many_steps_number_some_of_them() -> None:
    grid = sb.Grid(8, 8)
    draw = sb.RandomSerializer()(sb.TokenPartitioner()(blank(1), grid))
    masks = sb.SegmentCausalMask()(draw, *draw.windows(), num_prefix=0)
    assert 8 <= len(visualize.draw_masks(masks, draw).axes[0].get_xticks()) <= 17


# --- reading order ----------------------------------------------------------------------------------------------


def frames_of(path: Path) -> tuple[list[np.ndarray[Any, Any]], list[int]]:
    with Image.open(path) as gif:
        frames = [(np.array(f.convert("RGB")), f.info["duration"]) for f in ImageSequence.Iterator(gif)]
    return [pixels for pixels, _ in frames], [duration for _, duration in frames]


def few_colours(size: int = 16) -> torch.Tensor:
    """An image of 48 colours, which a GIF keeps exactly."""
    generator = torch.Generator().manual_seed(0)
    palette = torch.randint(0, 256, (48, 3), generator=generator)
    return palette[torch.randint(0, 48, (size, size), generator=generator)].permute(2, 0, 1) / 255


@pytest.mark.parametrize("index", [0, 1])
def test_gif_shows_what_was_read(tmp_path: Path, index: int) -> None:
    image, path = few_colours(), tmp_path / "order.gif"
    draw = sb.RandomSerializer()(
        sb.BlobPartitioner(counts=(5, 2))(blank(2), GRID, generator=torch.Generator().manual_seed(3)),
        generator=torch.Generator().manual_seed(4),
    )
    visualize.reading_order_gif(image, draw, GRID, path, image_index=index, milliseconds=200)
    frames, durations = frames_of(path)
    num_steps = int(draw.step[index].max()) + 1
    assert num_steps > 2
    assert len(frames) == num_steps + 2
    assert durations == [200] * (num_steps + 1) + [800]

    pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy().repeat(16, 0).repeat(16, 1)
    step = torch.empty(16, dtype=torch.long)
    step[draw.order[index]] = draw.step[index]
    for shown, frame in enumerate(frames):
        now = shown - 1
        assert frame.shape[0] > frame.shape[1] == 256  # a caption below
        for position in range(16):
            y, x = position // 4 * 64, position % 4 * 64
            here, original = frame[y : y + 64, x : x + 64], pixels[y : y + 64, x : x + 64]
            if step[position] > now and now < num_steps:
                assert len(np.unique(here[2:, 2:].reshape(-1, 3), axis=0)) == 1, "unread tokens are one grey"
                assert np.ptp(here[8, 8].astype(int)) == 0
            elif step[position] == now:
                np.testing.assert_array_equal(here[6:-6, 6:-6], original[6:-6, 6:-6])
            else:
                np.testing.assert_array_equal(here, original)


def test_gif_frames_the_step_and_nothing_else(tmp_path: Path) -> None:
    draw = sb.OrderedSerializer()(sb.SquarePartitioner(sides=(2,))(blank(1), GRID))
    visualize.reading_order_gif(few_colours(), draw, GRID, tmp_path / "order.gif")
    frames, _ = frames_of(tmp_path / "order.gif")
    signal = np.round(np.array(to_rgb(palette.SIGNAL)) * 255)
    for step in range(4):
        marked = (np.abs(frames[step + 1][:256] - signal).max(-1) < 2).nonzero()
        top, left = step // 2 * 128, step % 2 * 128
        assert (marked[0].min(), marked[0].max()) == (top, top + 127)
        assert (marked[1].min(), marked[1].max()) == (left, left + 127)
        inner = (
            (marked[0] > top + 8) & (marked[0] < top + 119) & (marked[1] > left + 8) & (marked[1] < left + 119)
        ).sum()
        assert inner == 0
    for frame in (frames[0], frames[-1]):
        assert (np.abs(frame - signal).max(-1) >= 2).all()


def test_gif_of_many_colours_stays_close_and_of_gray_images_exact(tmp_path: Path) -> None:
    draw = sb.OrderedSerializer()(sb.TokenPartitioner()(blank(1), GRID))
    for channels, tolerance in ((3, 40), (1, 0)):
        image = torch.arange(channels * 256).reshape(channels, 16, 16).float() / (channels * 256 - 1)
        image = (image * 15).round() / 15 if channels == 1 else image
        visualize.reading_order_gif(image, draw, GRID, tmp_path / "order.gif")
        last = frames_of(tmp_path / "order.gif")[0][-1][:256]
        expected = (image.expand(3, -1, -1).permute(1, 2, 0) * 255).round().numpy().repeat(16, 0).repeat(16, 1)
        assert np.abs(last - expected).max() <= tolerance


def test_gif_of_large_and_of_oblong_images(tmp_path: Path) -> None:
    draw = sb.OrderedSerializer()(sb.TokenPartitioner()(blank(1), sb.Grid(2, 4)))
    for height, width, scale in ((128, 256, 1), (8, 16, 16)):
        visualize.reading_order_gif(torch.rand(3, height, width), draw, sb.Grid(2, 4), tmp_path / "order.gif")
        frame = frames_of(tmp_path / "order.gif")[0][0]
        assert frame.shape == (height * scale + reading_order.CAPTION_HEIGHT, width * scale, 3)


# --- files ------------------------------------------------------------------------------------------------------


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "figure.png"
    figure = visualize.draw_segments(gray(), sb.TokenPartitioner()(blank(1), GRID), GRID)
    visualize.save_figure(figure, path)
    before = path.read_bytes()
    with Image.open(path) as png:
        assert png.format == "PNG"
        assert min(png.size) > 300
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]

    def break_off(file: Path, **_: Any) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    figure.savefig = break_off
    with pytest.raises(OSError, match="disk full"):
        visualize.save_figure(figure, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]


def test_importing_is_cheap_and_drawing_leaves_pyplot_alone(bare: Callable[[str], str]) -> None:
    bare(
        "import sys; import ssl_blocks.visualize as v; import torch, ssl_blocks as sb; "
        "heavy = {'matplotlib', 'matplotlib.figure'} & set(sys.modules); assert not heavy, heavy; "
        "x, grid = torch.rand(1, 3, 8, 8), sb.Grid(4, 4); v.draw_segments(x, sb.TokenPartitioner()(x, grid), grid); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 16, 16), r"images has shape \(3, 16, 16\), expected \(any, any, any, any\)"),
        (torch.rand(1, 3, 3, 16), r"images has shape \(1, 3, 3, 16\), expected a size of at least the grid 4x4"),
        (
            torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
            r"images has dtype torch.uint8, expected floating point in 0..1",
        ),
        (torch.rand(0, 3, 16, 16), r"images of shape \(0, 3, 16, 16\) must be at least one"),
        (torch.rand(2, 3, 16, 16), r"segments.levels\[0\] has shape \(1, 16\), expected \(2, 16\)"),
    ],
)
def test_wrong_images_are_named(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visualize.draw_segments(images, sb.TokenPartitioner()(blank(1), GRID), GRID)


def test_wrong_reconstructions_are_named() -> None:
    good, known = gray(2), torch.zeros(2, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"targets has shape \(1, 3, 16, 16\), expected \(2, 3, 16, 16\)"):
        visualize.draw_reconstructions(good, good[:1], good, known, GRID)
    with pytest.raises(ValueError, match=r"predictions has shape \(2, 16, 48\), expected \(2, 3, 16, 16\)"):
        visualize.draw_reconstructions(good, good, torch.rand(2, 16, 48), known, GRID)
    with pytest.raises(ValueError, match=r"known has shape \(2, 9\), expected \(2, 16\)"):
        visualize.draw_reconstructions(good, good, good, known[:, :9], GRID)
    with pytest.raises(ValueError, match=r"known has dtype torch.int64, expected torch.bool"):
        visualize.draw_reconstructions(good, good, good, known.long(), GRID)


def test_wrong_serializations_are_named(tmp_path: Path) -> None:
    masks, draw = masks_of(sb.SquarePartitioner(sides=(2,)))
    with pytest.raises(ValueError, match="image_index=2 must name one of the 2 images"):
        visualize.draw_masks(masks, draw, image_index=2)
    with pytest.raises(ValueError, match="image_index=-1 must be at least 0"):
        visualize.reading_order_gif(torch.rand(3, 16, 16), draw, GRID, tmp_path / "order.gif", image_index=-1)
    other = sb.OrderedSerializer()(sb.TokenPartitioner()(blank(1), sb.Grid(3, 3)))
    with pytest.raises(ValueError, match=r"masks\.\w+ has shape .*, expected"):
        visualize.draw_masks(masks, other)
    with pytest.raises(ValueError, match=r"serialization.order has shape \(1, 9\), expected \(any, 16\)"):
        visualize.reading_order_gif(torch.rand(3, 16, 16), other, GRID, tmp_path / "order.gif")
    with pytest.raises(ValueError, match=r"image has shape \(1, 3, 16, 16\), expected \(any, any, any\)"):
        visualize.reading_order_gif(torch.rand(1, 3, 16, 16), draw, GRID, tmp_path / "order.gif")
    assert not list(tmp_path.iterdir())


def test_steps_show_what_was_read_the_guess_and_what_is_to_come() -> None:
    images, predictions = torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)
    predictions[:, 1:] = 0  # red guesses on black images
    segments = sb.SquarePartitioner(sides=(2,))(blank(2), sb.Grid(4, 4))
    draw = sb.RandomSerializer()(segments, generator=torch.Generator().manual_seed(0))
    figure = visualize.draw_steps(images, predictions, draw, sb.Grid(4, 4), image_indices=(1,))
    later = to_rgb(reconstructions.LATER)
    step = draw.put(draw.step)[1].reshape(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
    assert [panel.get_title() for panel in figure.axes] == ["image", "step 1", "step 2", "step 3"]
    for number, panel in enumerate(figure.axes[1:], start=1):
        shown = panel.images[0].get_array()
        assert np.allclose(shown[step < number], 0)
        assert np.allclose(shown[step == number], [1, 0, 0])
        assert np.allclose(shown[step > number], later)


def test_of_many_steps_some_are_shown_the_first_and_the_last_among_them() -> None:
    images = torch.rand(1, 1, 8, 8)
    draw = sb.RandomSerializer()(sb.TokenPartitioner()(blank(1), sb.Grid(8, 8)))
    titles = [p.get_title() for p in visualize.draw_steps(images, images, draw, sb.Grid(8, 8)).axes]
    assert titles == ["image", "step 1", "step 11", "step 22", "step 32", "step 42", "step 53", "step 63"]
    titles = [p.get_title() for p in visualize.draw_steps(images, images, draw, sb.Grid(8, 8), predict_first=True).axes]
    assert titles[1:3] == ["step 0", "step 10"]


def test_rows_of_blobs_may_be_of_unequal_length_and_a_single_blob_has_no_step() -> None:
    images, grid = torch.rand(3, 3, 16, 16), sb.Grid(8, 8)
    draw = sb.RandomSerializer()(
        sb.BlobPartitioner(counts=(6,))(blank(3), grid, generator=torch.Generator().manual_seed(3))
    )
    count = int(draw.step.max())
    figure = visualize.draw_steps(images, images, draw, grid, image_indices=(0, 1, 2))
    assert len(figure.axes) == 3 * (count + 1)
    alone = sb.Serialization(draw.order, torch.zeros_like(draw.step), None)
    assert len(visualize.draw_steps(images, images, alone, grid).axes) == 1
    with pytest.raises(ValueError, match="image_index=5 must name one of the 3 images"):
        visualize.draw_steps(images, images, draw, grid, image_indices=(5,))
    with pytest.raises(ValueError, match="predictions has shape"):
        visualize.draw_steps(images, images[:2], draw, grid)


def metrics(path: Path, *, knn: bool = True, rows: int = 40) -> Path:
    """A file as runs write it: kNN now and then."""
    scores = [str(0.5 + i / 100) if knn and i % 10 == 9 else "" for i in range(rows)]
    values = [f"{i},{(i + 1) / 4},{2 - i / rows},0.1,{score}" for i, score in enumerate(scores)]
    lines = ["step,epoch,loss,lr,knn", *values]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_curves_are_those_of_the_files(tmp_path: Path) -> None:
    runs = {"one": metrics(tmp_path / "a.csv"), "two": metrics(tmp_path / "b.csv", knn=False)}
    figure = visualize.draw_curves(runs, references={"raw pixels": 0.42})
    loss, knn = figure.axes
    raw, smooth = loss.lines[:2]
    assert raw.get_xdata()[[0, -1]].tolist() == [0.25, 10.0]
    assert np.allclose(raw.get_ydata(), 2 - np.arange(40) / 40)
    assert np.allclose(smooth.get_ydata()[1:-1], 2 - np.arange(40)[1:-1] / 40, atol=0.02)
    assert len(smooth.get_xdata()) == 40
    assert knn.lines[0].get_xdata().tolist() == [2.5, 5.0, 7.5, 10.0]
    assert np.allclose(knn.lines[0].get_ydata(), [0.59, 0.69, 0.79, 0.89])
    assert knn.lines[1].get_ydata()[0] == 0.42
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["one", "two"]
    assert [text.get_text() for text in knn.get_legend().get_texts()] == ["one", "raw pixels"]
    colors = {line.get_color() for line in loss.lines}
    assert len(colors) == 2
    knn.set(yticks=(0.6, 0.625, 0.65), ylim=(0.55, 0.7))
    figure.draw_without_rendering()
    assert [text.get_text() for text in knn.get_yticklabels()] == ["60.0%", "62.5%", "65.0%"]


def test_runs_without_knn_have_one_panel_and_one_run_no_legend(tmp_path: Path) -> None:
    figure = visualize.draw_curves({"one": metrics(tmp_path / "a.csv", knn=False)}, references={"raw pixels": 0.42})
    assert len(figure.axes) == 1
    assert figure.axes[0].get_legend() is None


@pytest.mark.parametrize("text", ["", "step,lr\n0,1\n", "step,epoch,loss\n0,1,\n", "step,epoch,loss\n0,1,much\n"])
def test_files_without_losses_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=r"metrics.csv must hold"):
        visualize.draw_curves({"one": tmp_path / "metrics.csv"})
    with pytest.raises(ValueError, match="must name at least one run"):
        visualize.draw_curves({})


# --- matches ----------------------------------------------------------------------------------------------------


def test_matches_are_framed_where_they_lie() -> None:
    match = torch.zeros(1, 16, dtype=torch.int64)
    match[0, [4, 12]] = torch.tensor([15, 3])  # of the two regions that are shown
    figure = visualize.draw_matches(gray(), gray(level=0.2), match, (GRID, GRID), num_regions=2)
    shown = Rendered(figure)
    edge = 0.2  # pixels from the corner of a cell of 4 pixels, where its frame is

    def frame(panel: int, position: int) -> Any:
        row, column = divmod(position, 4)
        return shown.at(panel, column * 4 - 0.5 + 2, row * 4 - 0.5 + edge)

    for panel, places, level in ((0, (4, 12), 0.5), (1, (15, 3), 0.2)):
        for color, place in zip(palette.HUES[:2], places, strict=True):
            assert close(frame(panel, place), to_rgb(color), 0.3)
        others = set(range(16)) - set(places)
        assert all(close(frame(panel, place), [level] * 3) for place in others)
    texts = [[text.get_text() for text in panel.texts] for panel in figure.axes]
    assert texts == [["1", "2"], ["1", "2"]]


def test_regions_with_one_match_share_its_cell() -> None:
    views = gray(2)
    match = torch.full((2, 16), 7)
    figure = visualize.draw_matches(views, views, match, (GRID, GRID), others=[gray(2, size=8)], num_regions=3)
    assert len(figure.axes) == 6
    assert [text.get_text() for text in figure.axes[1].texts] == ["1 2 3"]
    assert figure.axes[2].get_title() == "small crop"


def test_matches_that_do_not_fit_are_named() -> None:
    match = torch.zeros(1, 16, dtype=torch.int64)
    for arguments, options, message in (
        ((gray(), gray(2), match, (GRID, GRID)), {}, "second has shape"),
        ((gray(), gray(), match[:, :4], (GRID, GRID)), {}, "match has shape"),
        ((gray(), gray(), match, (GRID, GRID)), {"num_regions": 8}, "num_regions=8 must be at least 1 and at most 7"),
        ((gray(), gray(), match, (GRID, GRID)), {"others": [gray(2)]}, "others has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            visualize.draw_matches(*arguments, **options)
