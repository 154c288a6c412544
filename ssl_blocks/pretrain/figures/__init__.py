"""Pictures of a run; each module registers what its kind of objective has to show."""

from ssl_blocks.pretrain.figures import combined, distillation, pixels, puzzle, registry
from ssl_blocks.pretrain.figures.registry import NUM_EXAMPLES, draw_examples, write_curves, write_figures

__all__ = [
    "NUM_EXAMPLES",
    "combined",
    "distillation",
    "draw_examples",
    "pixels",
    "puzzle",
    "registry",
    "write_curves",
    "write_figures",
]
