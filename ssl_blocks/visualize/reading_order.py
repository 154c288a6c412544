"""An image being read, as an animation."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from ssl_blocks.bounds import Count, Whole
from ssl_blocks.doors import checked
from ssl_blocks.files import atomically
from ssl_blocks.grid import Grid
from ssl_blocks.values import Serialization
from ssl_blocks.visualize.palette import SIGNAL, UNREAD, UNREAD_EDGE
from ssl_blocks.visualize.panels import Array, check_shape, raster_steps, spread, to_pictures

GIF_SIDE, CAPTION_HEIGHT = 256, 26


@checked
def reading_order_gif(
    image: Tensor,
    serialization: Serialization,
    grid: Grid,
    path: str | Path,
    *,
    image_index: Whole = 0,
    milliseconds: Count = 350,
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
    if grid.ndim < 3:  # else channels may be an axis of the grid
        check_shape("image", image, (-1,) * (grid.ndim + 1))
    (picture,) = to_pictures("image", image[None], grid)
    step = raster_steps(serialization, image_index, grid)
    count = int(step.max()) + 1
    frame = _gif_painter(picture, grid)
    frames = [frame(step > -1, step < 0, "nothing read yet")]
    frames += [frame(step > s, step == s, f"step {s}  ({s + 1} of {count})") for s in range(count)]
    frames.append(frame(step < 0, step < 0, f"all {count} steps read"))
    duration = [milliseconds] * (count + 1) + [4 * milliseconds]
    with atomically(path) as temporary:
        frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)


def _gif_painter(picture: Array, grid: Grid) -> Any:
    """A function from (hidden, framed, caption) to a frame; all share one palette, so that no colour flickers."""
    from PIL import Image, ImageColor, ImageDraw, ImageFont

    fixed = [*map(ImageColor.getrgb, (UNREAD, UNREAD_EDGE, SIGNAL)), *((g, g, g) for g in range(0, 256, 51))]
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    reduced = image.quantize(256 - len(fixed), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette = [value for color in fixed for value in color] + (reduced.getpalette() or [])
    scale = max(1, round(GIF_SIDE / max(picture.shape[:2])))
    pixels = (np.asarray(reduced) + len(fixed)).repeat(scale, axis=0).repeat(scale, axis=1)
    width, line = pixels.shape[1], max(1, min(pixels.shape) // 85)
    numbers = spread(np.arange(grid.num_tokens), grid, pixels)[..., 0]
    above, before = (np.diff(numbers, axis=axis, prepend=-1) != 0 for axis in (0, 1))  # first pixels of a token
    unread = np.where(above | before, 1, 0)

    def frame(hidden: Array, framed: Array, caption: str) -> Any:
        hidden, framed = (spread(mask, grid, pixels)[..., 0] for mask in (hidden, framed))
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
