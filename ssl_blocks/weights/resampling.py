"""Position tables for another grid."""

from jaxtyping import Float
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from ssl_blocks.values import Grid


def resample_positions(
    table: Float[Tensor, "1 r d"], *, old: Grid, new: Grid, num_prefix: int = 0
) -> Float[Tensor, "1 s d"]:
    """Resample a table of positions to another grid, as DeiT and MAE do when the input size changes.

    Rows of prefix tokens stay as they are; the others are interpolated bicubically, with antialiasing (timm's
    ``resample_abs_pos_embed``).

    Args:
        table: ``[1, num_prefix + N, D]``.
        old: grid of the table.
        new: grid that is wanted.
        num_prefix: rows at the start that belong to prefix tokens.

    Returns:
        ``[1, num_prefix + N', D]``.

    Raises:
        ValueError: if the table is not of the old grid.

    Examples:
        >>> import torch
        >>> resample_positions(torch.zeros(1, 17, 8), old=Grid(4, 4), new=Grid(6, 8), num_prefix=1).shape
        torch.Size([1, 49, 8])
    """
    if table.shape[1] != num_prefix + old.num_tokens:
        raise ValueError(
            f"table of {table.shape[1]} rows must have num_prefix + N = {num_prefix} + {old.num_tokens} of grid {old}"
        )
    if old == new:
        return table
    resampled: Tensor = resample_abs_pos_embed(
        table, [new.height, new.width], old_size=[old.height, old.width], num_prefix_tokens=num_prefix
    )
    return resampled
