"""Who may attend to whom, step by step."""

from typing import Any

import numpy as np
import torch

from ssl_blocks.bounds import Whole
from ssl_blocks.doors import checked
from ssl_blocks.values import AttentionMasks, Serialization
from ssl_blocks.visualize.palette import ALLOWED, BLOCKED
from ssl_blocks.visualize.panels import Array, Figure, add_legend, check_shape, new_figure, steps_of


@checked
def draw_masks(masks: AttentionMasks, serialization: Serialization, *, image_index: Whole = 0) -> Figure:
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
        >>> segments = sb.SquarePartitioner(sides=(2,))(torch.rand(1, 3, 8, 8), sb.Grid(4, 4))
        >>> draw = sb.RandomSerializer()(segments)
        >>> masks = sb.SegmentCausalMask()(draw, *draw.windows(), num_prefix=1)
        >>> [panel.get_title() for panel in draw_masks(masks, draw).axes]
        ['source: encoder sees itself', 'target: decoder sees itself', 'memory: decoder sees encoder']
    """
    from matplotlib.colors import ListedColormap

    step = steps_of(serialization, image_index)
    encoded = step[serialization.windows()[0]]
    num_queries, num_keys = masks.memory.shape[-2:]
    source = np.concatenate([np.full(max(0, num_keys - len(encoded)), -1), encoded])
    target = step[max(0, len(step) - num_queries) :]
    parts = (
        ("source", "encoder sees itself", source, source),
        ("target", "decoder sees itself", target, target),
        ("memory", "decoder sees encoder", target, source),
    )
    figure = new_figure(11.0, 4.4, "constrained")
    for panel, (name, text, rows, columns) in zip(figure.subplots(1, 3), parts, strict=True):
        mask = getattr(masks, name)
        check_shape(f"masks.{name}", mask, (-1, 1, len(rows), len(columns)), torch.bool)
        shown = mask[image_index if len(mask) > 1 else 0, 0].cpu().numpy()
        panel.imshow(shown, cmap=ListedColormap([BLOCKED, ALLOWED]), vmin=0, vmax=1, interpolation="nearest")
        panel.set(title=f"{name}: {text}", xlabel="key (step)", ylabel="query (step)", anchor="N")
        panel.tick_params(length=0, labelsize=8)
        _step_axis(panel.axvline, panel.set_xticks, columns)
        _step_axis(panel.axhline, panel.set_yticks, rows)
    keys = [(ALLOWED, "#888888", "may attend"), (BLOCKED, "#888888", "may not")]
    add_legend(figure, keys, ncols=2, linewidth=1.0)
    return figure


def _step_axis(line: Any, set_ticks: Any, step: Array) -> None:
    """Separate steps by lines and put their numbers at the middle of each, 17 at most."""
    names, starts, sizes = np.unique(step, return_index=True, return_counts=True)
    for start in starts[1:]:
        line(start - 0.5, color="#888888", linewidth=0.8 if len(starts) <= 32 else 0.3)
    chosen = (names < 0) | (names % -(-len(names) // 16) == 0)
    labels = ["P" if name < 0 else str(name) for name in names[chosen]]
    set_ticks((starts + (sizes - 1) / 2)[chosen], labels)
