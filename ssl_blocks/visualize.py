"""Pictures of segments, reading orders, masks and reconstructions.

Matplotlib and Pillow are imported where they are used, so importing this module costs nothing. Figures are plain
``Figure`` objects: no window system and none of pyplot's global state.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor  # plain in the signatures: shapes are checked here, with messages of their own

from ssl_blocks.files import atomically
from ssl_blocks.values import AttentionMasks, Grid, Segments, Serialization

if TYPE_CHECKING:
    import matplotlib.figure

Array: TypeAlias = NDArray[Any]

# Okabe and Ito's colours, which all kinds of colour vision tell apart
HUES = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
ALLOWED, BLOCKED, SIGNAL, INK, PAPER = "#0072B2", "#F2F2F2", "#D55E00", "#222222", "#FFFFFF"
UNREAD, UNREAD_EDGE = "#BDBDBD", "#A3A3A3"
DPI, GIF_SIDE, CAPTION_HEIGHT = 150, 256, 26
_LEGEND: dict[str, Any] = {"loc": "outside lower center", "frameon": False}


def draw_segments(images: Tensor, segments: Segments, grid: Grid) -> "matplotlib.figure.Figure":
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
        >>> from ssl_blocks import SquarePartitioner
        >>> segments = SquarePartitioner(sides=(2, 4))(3, Grid(8, 8))
        >>> len(draw_segments(torch.rand(3, 3, 32, 32), segments, Grid(8, 8)).axes)
        6
    """
    pictures = _pictures("images", images, grid)
    _check("segments.levels[0]", segments.levels[0], (len(pictures), grid.num_tokens))
    figure, panels = _panels(("image", "segments"), pictures)
    for column, picture in enumerate(pictures):
        levels = [ids[column].cpu().numpy() for ids in segments.levels]
        colors = _spread(_segment_colors(levels[0], levels[-1]), grid, picture)
        panels[0, column].imshow(picture)
        panels[1, column].imshow(0.65 * colors + 0.35 * (0.25 + 0.75 * picture.mean(-1, keepdims=True)))
        _outline(panels[1, column], levels[0], grid, picture, INK, 1.8)
        _outline(panels[1, column], levels[0], grid, picture, PAPER, 0.9)
        if len(levels) > 1:
            _outline(panels[1, column], levels[-1], grid, picture, INK, 3.0)
    return figure


def draw_reconstructions(
    images: Tensor, targets: Tensor, predictions: Tensor, known: Tensor, grid: Grid
) -> "matplotlib.figure.Figure":
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
    from matplotlib.patches import Patch

    pictures = _pictures("images", images, grid)
    _check("targets", targets, tuple(images.shape))
    _check("predictions", predictions, tuple(images.shape))
    _check("known", known, (len(pictures), grid.num_tokens), torch.bool)
    columns = zip(
        pictures, _pictures("targets", targets, grid), _pictures("predictions", predictions, grid), strict=True
    )
    figure, panels = _panels(("image", "target", "prediction"), pictures, legend=True)
    for column, (picture, target, prediction) in enumerate(columns):
        given = known[column].cpu().numpy()
        pale = 0.5 + 0.5 * picture.mean(-1, keepdims=True)
        panels[0, column].imshow(picture)
        panels[1, column].imshow(target)
        panels[2, column].imshow(np.where(_spread(given, grid, picture), pale, prediction))
        for row in (1, 2):
            _outline(panels[row, column], given, grid, picture, SIGNAL, 1.5, closed=True)
    label = "given, not predicted" if known.any() else "given, not predicted: none"
    figure.legend(handles=[Patch(facecolor="#DDDDDD", edgecolor=SIGNAL, linewidth=1.5, label=label)], **_LEGEND)
    return figure


def draw_masks(
    masks: AttentionMasks, serialization: Serialization, *, image_index: int = 0
) -> "matplotlib.figure.Figure":
    """Show the source, target and memory mask of one image, tokens in sequence order.

    Lines separate the steps, whose numbers stand along the axes; ``P`` marks prefix tokens.

    Args:
        masks: as built for the windows of ``serialization``.
        serialization: gives the step of every row and column.
        image_index: which image of the batch.

    Raises:
        ValueError: if there is no such image, or the masks do not fit the serialization.

    Examples:
        >>> import ssl_blocks as sb
        >>> draw = sb.RandomSerializer()(sb.SquarePartitioner(sides=(2,))(1, Grid(4, 4)))
        >>> masks = sb.SegmentCausalMask()(draw, *draw.windows(), num_prefix=1)
        >>> [panel.get_title() for panel in draw_masks(masks, draw).axes]
        ['source: encoder sees itself', 'target: decoder sees itself', 'memory: decoder sees encoder']
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    step = _steps_of(serialization, image_index)
    encoded = step[serialization.windows()[0]]
    num_queries, num_keys = masks.memory.shape[-2:]
    source = np.concatenate([np.full(max(0, num_keys - len(encoded)), -1), encoded])
    target = step[max(0, len(step) - num_queries) :]
    parts = (
        ("source", "encoder sees itself", source, source),
        ("target", "decoder sees itself", target, target),
        ("memory", "decoder sees encoder", target, source),
    )
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for panel, (name, text, rows, columns) in zip(figure.subplots(1, 3), parts, strict=True):
        mask = getattr(masks, name)
        _check(f"masks.{name}", mask, (-1, 1, len(rows), len(columns)), torch.bool)
        shown = mask[image_index if len(mask) > 1 else 0, 0].cpu().numpy()
        panel.imshow(shown, cmap=ListedColormap([BLOCKED, ALLOWED]), vmin=0, vmax=1, interpolation="nearest")
        panel.set(title=f"{name}: {text}", xlabel="key (step)", ylabel="query (step)", anchor="N")
        panel.tick_params(length=0, labelsize=8)
        _step_axis(panel.axvline, panel.set_xticks, columns)
        _step_axis(panel.axhline, panel.set_yticks, rows)
    colors = ((ALLOWED, "may attend"), (BLOCKED, "may not"))
    figure.legend(handles=[Patch(facecolor=c, edgecolor="#888888", label=t) for c, t in colors], ncols=2, **_LEGEND)
    return figure


def reading_order_gif(
    image: Tensor,
    serialization: Serialization,
    grid: Grid,
    path: str | Path,
    *,
    image_index: int = 0,
    milliseconds: int = 350,
) -> None:
    """Write an animation of an image being read: one frame per step, its tokens framed, unread tokens grey.

    The first frame shows nothing read, the last one the whole image, four times as long. Colours are reduced to
    what a GIF can hold, once for all frames.

    Args:
        image: ``[C, H, W]`` float in 0..1.
        serialization: order and steps.
        grid: tokens of the image.
        path: where to write; folders are made as needed.
        image_index: which image of the serialization's batch this is.
        milliseconds: how long a frame stands.

    Raises:
        ValueError: if shapes do not fit each other, or there is no such image in the serialization.
    """
    _check("image", image, (-1, -1, -1))
    (picture,) = _pictures("image", image[None], grid)
    _check("serialization.order", serialization.order, (-1, grid.num_tokens))
    step = np.empty(grid.num_tokens, dtype=int)
    step[serialization.order[image_index].cpu().numpy()] = _steps_of(serialization, image_index)
    count = int(step.max()) + 1
    frame = _gif_painter(picture, grid)
    frames = [frame(step > -1, step < 0, "nothing read yet")]
    frames += [frame(step > s, step == s, f"step {s}  ({s + 1} of {count})") for s in range(count)]
    frames.append(frame(step < 0, step < 0, f"all {count} steps read"))
    duration = [milliseconds] * (count + 1) + [4 * milliseconds]
    with atomically(path) as temporary:
        frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)


def save_figure(figure: "matplotlib.figure.Figure", path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: any matplotlib figure.
        path: where to write; folders are made as needed, an existing file is replaced.
    """
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor=PAPER)


def _check(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Compare a shape, in which -1 stands for any length from 1, and a dtype."""
    have = tuple(value.shape)
    if len(have) != len(shape) or any(h != w and (w != -1 or h < 1) for h, w in zip(have, shape, strict=True)):
        raise ValueError(
            f"{name} has shape {have}, expected ({', '.join('any' if w == -1 else str(w) for w in shape)})"
        )
    if dtype is not None and value.dtype != dtype:
        raise ValueError(f"{name} has dtype {value.dtype}, expected {dtype}")


def _pictures(name: str, images: Tensor, grid: Grid) -> list[Array]:
    """RGB arrays ``[H, W, 3]`` in 0..1."""
    _check(name, images, (-1, -1, -1, -1))
    if images.shape[2] % grid.height or images.shape[3] % grid.width:
        raise ValueError(f"{name} has shape {tuple(images.shape)}, expected a size that the grid {grid} divides")
    if not images.is_floating_point():
        raise ValueError(f"{name} has dtype {images.dtype}, expected floating point in 0..1")
    shown = images[:, :3] if images.shape[1] >= 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return list(shown.detach().float().nan_to_num().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy())


def _steps_of(serialization: Serialization, image_index: int) -> Array:
    batch = len(serialization.step)
    if not 0 <= image_index < batch:
        raise ValueError(f"image_index={image_index} must name one of the {batch} images of the serialization")
    return np.asarray(serialization.step[image_index].cpu())


def _panels(
    titles: tuple[str, ...], pictures: list[Array], legend: bool = False
) -> tuple["matplotlib.figure.Figure", Array]:
    """A figure of titled rows, with bare panels in the pictures' aspect."""
    from matplotlib.figure import Figure

    columns, (height, width, _) = len(pictures), pictures[0].shape
    side = 3.0 if columns == 1 else 2.2 if columns <= 4 else 1.6  # inches
    size = (columns * side + 0.4, len(titles) * side * height / width + 0.2 + 0.4 * legend)
    figure = Figure(figsize=size, layout="compressed")
    panels: Array = figure.subplots(len(titles), columns, squeeze=False)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for panel, title in zip(panels[:, 0], titles, strict=True):
        panel.set_ylabel(title, fontsize=11)
    return figure, panels


def _spread(values: Array, grid: Grid, picture: Array) -> Array:
    """Repeat the values of each token over its pixels: ``[N, c]`` to ``[H, W, c]``."""
    cells = values.reshape(grid.height, grid.width, -1)
    return cells.repeat(picture.shape[0] // grid.height, axis=0).repeat(picture.shape[1] // grid.width, axis=1)


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


def _outline(
    panel: Any, ids: Array, grid: Grid, picture: Array, color: str, width: float, *, closed: bool = False
) -> None:
    """Draw the borders between tokens of different ids; ``closed``: also those of ids but 0 with the outside."""
    from matplotlib.collections import LineCollection

    cells = ids.reshape(grid.height, grid.width)
    cells = np.pad(cells, 1) if closed else np.pad(cells, 1, mode="edge")
    level = np.argwhere(cells[:-1, 1:-1] != cells[1:, 1:-1])[:, None] + [[0, 0], [0, 1]]
    upright = np.argwhere(cells[1:-1, :-1] != cells[1:-1, 1:])[:, None] + [[0, 0], [1, 0]]
    corners = np.concatenate([level, upright]) * (picture.shape[0] / grid.height, picture.shape[1] / grid.width)
    lines = list(corners[..., ::-1] - 0.5)  # (x, y), and pixel 0 has its centre at 0
    style: dict[str, Any] = {"colors": color, "linewidths": width, "capstyle": "projecting", "clip_on": not closed}
    panel.add_collection(LineCollection(lines, **style))


def _step_axis(line: Any, set_ticks: Any, step: Array) -> None:
    """Separate steps by lines and put their numbers at the middle of each, 17 at most."""
    names, starts, sizes = np.unique(step, return_index=True, return_counts=True)
    for start in starts[1:]:
        line(start - 0.5, color="#888888", linewidth=0.8 if len(starts) <= 32 else 0.3)
    chosen = (names < 0) | (names % -(-len(names) // 16) == 0)
    labels = ["P" if name < 0 else str(name) for name in names[chosen]]
    set_ticks((starts + (sizes - 1) / 2)[chosen], labels)


def _gif_painter(picture: Array, grid: Grid) -> Any:
    """A function from (hidden, framed, caption) to a frame; all share one palette, so that no colour flickers."""
    from PIL import Image, ImageColor, ImageDraw, ImageFont

    fixed = [*map(ImageColor.getrgb, (UNREAD, UNREAD_EDGE, SIGNAL)), *((g, g, g) for g in range(0, 256, 51))]
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    reduced = image.quantize(256 - len(fixed), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette = [value for color in fixed for value in color] + (reduced.getpalette() or [])
    scale = max(1, round(GIF_SIDE / max(picture.shape[:2])))
    pixels = (np.asarray(reduced) + len(fixed)).repeat(scale, axis=0).repeat(scale, axis=1)
    (height, width), line = pixels.shape, max(1, min(pixels.shape) // 85)
    rows, columns = np.arange(height) % (height // grid.height), np.arange(width) % (width // grid.width)
    unread = np.where(np.logical_and.outer(rows > 0, columns > 0), 0, 1)

    def frame(hidden: Array, framed: Array, caption: str) -> Any:
        hidden, framed = (_spread(mask, grid, pixels)[..., 0] for mask in (hidden, framed))
        inner: Array = np.pad(framed, line)
        for axis in (0, 1):
            inner = np.asarray(sliding_window_view(inner, 2 * line + 1, axis).all(-1))
        shown = np.where(hidden, unread, np.where(framed & ~inner, 2, pixels))
        strip = Image.new("L", (width, CAPTION_HEIGHT), 255)
        ImageDraw.Draw(strip).text((4, 4), caption, 0, ImageFont.load_default(14))
        grays = 3 + np.asarray(strip) // 51  # palette entries 3 to 8, black to white
        out = Image.fromarray(np.concatenate([shown, grays]).astype(np.uint8))
        out.putpalette(palette)
        return out

    return frame
