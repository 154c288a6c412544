"""``PostNormTransformer``, stored and built again."""

from collections.abc import Mapping
from typing import Any

from ssl_blocks.encoders.postnorm import PostNormTransformer
from ssl_blocks.encoders.storage.parts import Stored, grid_for


def describe(encoder: PostNormTransformer) -> Stored:
    """The arguments it was built with, and its weights."""
    return Stored("PostNormTransformer", encoder.model_args, encoder.state_dict())


def rebuild(model_args: Mapping[str, Any]) -> PostNormTransformer:
    """The same model, with weights to be filled in."""
    # JSON has no tuples
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in model_args.items()}
    return PostNormTransformer(**arguments)


def resized(stored: Stored, image_size: int | tuple[int, int]) -> Stored:
    """For another input size: without positions, nothing but the grid knows it."""
    height, width = stored.model_args["patch"]
    grid = grid_for(image_size, (height, width))
    return Stored(stored.architecture, {**stored.model_args, "grid": (grid.height, grid.width)}, stored.state)
