"""Pictures of segments, reading orders, masks, reconstructions, puzzles and runs.

Matplotlib and Pillow are imported where they are used, so importing this module costs nothing. Figures are plain
``Figure`` objects: no window system and none of pyplot's global state.
"""

from ssl_blocks.visualize.curves import draw_curves
from ssl_blocks.visualize.feature_maps import draw_features
from ssl_blocks.visualize.masks import draw_masks
from ssl_blocks.visualize.matches import draw_matches
from ssl_blocks.visualize.neighbours import draw_neighbours
from ssl_blocks.visualize.panels import save_figure
from ssl_blocks.visualize.puzzle import draw_puzzles
from ssl_blocks.visualize.reading_order import reading_order_gif
from ssl_blocks.visualize.reconstructions import draw_reconstructions, draw_steps
from ssl_blocks.visualize.segments import draw_segments

__all__ = [
    "draw_curves",
    "draw_features",
    "draw_masks",
    "draw_matches",
    "draw_neighbours",
    "draw_puzzles",
    "draw_reconstructions",
    "draw_segments",
    "draw_steps",
    "reading_order_gif",
    "save_figure",
]
