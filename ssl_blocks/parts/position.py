"""Position tables: one row per grid cell, looked up by raster index."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_blocks.bounds import Whole, Width
from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid


@checked
def sincos_table(grid: Grid, dim: Width) -> Float[Tensor, "n d"]:
    """Fixed sine-cosine table, ``[N, D]``: MAE's in two dimensions (used for RandSAC as well), the usual one in one.

    Every axis of the grid gets an equal share of the channels, the last axis the first: of an image the first half
    codes the column, the second the row. Each share holds its sines, then its cosines, with wavelengths from 2π to
    10,000·2π tokens.

    Raises:
        ValueError: if ``dim`` is not a multiple of twice the number of axes: 4 for an image, 6 for a volume.

    Examples:
        >>> sincos_table(Grid(2, 2), 4)[1]
        tensor([0.8415, 0.5403, 0.0000, 1.0000])
    """
    step = 2 * grid.ndim
    if dim < step or dim % step:
        raise ValueError(
            f"dim={dim} must be a positive multiple of {step} for sine-cosine positions: an equal, even share for each "
            f"axis of the grid {grid}"
        )
    frequency = 10_000.0 ** -(torch.arange(dim // step, dtype=torch.float64) / (dim // step))

    def axis(coordinate: Tensor) -> Tensor:
        angle = coordinate.double()[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    table = torch.cat([axis(coordinate) for coordinate in reversed(grid.coordinates())], dim=1)
    return table.to(torch.get_default_dtype())


@checked
class PositionTable(nn.Module):
    """Look up positions in a table that is fixed (a tensor) or learned (a parameter, may be shared).

    A parameter stays the caller's own: giving the encoder's ``pos_embed`` makes encoder and decoder share it.

    Args:
        table: ``[N, D]`` or ``[1, N, D]``, or with prefix rows first ``[1, num_prefix + N, D]``.
        num_prefix: rows at the start that belong to prefix tokens and are passed over.

    Examples:
        >>> PositionTable(sincos_table(Grid(4, 4), 8))(torch.tensor([[3, 0]])).shape
        torch.Size([1, 2, 8])
    """

    table: Tensor

    def __init__(self, table: Float[Tensor, "*one n d"], *, num_prefix: Whole = 0) -> None:
        super().__init__()
        if num_prefix >= table.shape[-2]:
            raise ValueError(f"num_prefix={num_prefix} must be below the {table.shape[-2]} rows of the table")
        if isinstance(table, nn.Parameter):
            self.table = table
        else:
            # computed anew at construction, so checkpoints of another grid stay loadable
            self.register_buffer("table", table, persistent=False)
        self.num_prefix = num_prefix

    @classmethod
    def sincos(cls, grid: Grid, dim: Width) -> "PositionTable":
        """Fixed sine-cosine table of a grid."""
        return cls(sincos_table(grid, dim))

    @classmethod
    def learned(cls, grid: Grid, dim: Width) -> "PositionTable":
        """Learned table of a grid, drawn from N(0, 0.02)."""
        return cls(nn.Parameter(torch.randn(grid.num_tokens, dim) * 0.02))

    @property
    def num_positions(self) -> int:
        """Rows that can be looked up."""
        return self.table.shape[-2] - self.num_prefix

    def no_weight_decay(self) -> set[str]:
        """Names of own parameters that weight decay must spare."""
        return {"table"}

    def forward(self, index: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
        """Return the rows of positions ``index``, ``[B, m, D]``."""
        return self.table.reshape(-1, self.table.shape[-1])[self.num_prefix :][index]


@checked
def resample_positions(
    table: Float[Tensor, "1 r d"], *, old: Grid, new: Grid, num_prefix: Whole = 0, antialias: bool = False
) -> Float[Tensor, "1 s d"]:
    """Resample a table of positions to another grid, as DeiT and MAE do when the input size changes.

    Rows of prefix tokens stay as they are; the others are interpolated bicubically (torch's ``interpolate``; where
    there are not two axes, one axis after the other). Fixed tables of sines and cosines may be resampled like learned
    ones: new rows lie between those that the encoder has seen.

    Args:
        table: ``[1, num_prefix + N, D]``.
        old: grid of the table.
        new: grid that is wanted.
        num_prefix: rows at the start that belong to prefix tokens.
        antialias: as timm's ``resample_abs_pos_embed``: smoothed where the grid shrinks, and by Pillow's kernel.

    Returns:
        ``[1, num_prefix + N', D]``.

    Raises:
        ValueError: if the table is not of the old grid, or the grids differ in their number of axes.

    Examples:
        >>> resample_positions(torch.zeros(1, 17, 8), old=Grid(4, 4), new=Grid(6, 8), num_prefix=1).shape
        torch.Size([1, 49, 8])
    """
    if table.shape[1] != num_prefix + old.num_tokens:
        raise ValueError(
            f"table of {table.shape[1]} rows must have num_prefix + N = {num_prefix} + {old.num_tokens} of grid {old}"
        )
    if old.ndim != new.ndim:
        raise ValueError(f"positions of the grid {old} cannot be resampled to {new}: it has another number of axes")
    if old == new:
        return table
    prefix, rows = table[:, :num_prefix], table[:, num_prefix:].reshape(*old.sizes, -1)
    if old.ndim == 2:
        rows = _stretched(rows.movedim(-1, 0)[None], new.sizes, antialias)[0].movedim(0, -1)
    else:
        for axis, size in enumerate(new.sizes):
            lines = rows.movedim(axis, -1)
            longer = _stretched(lines.reshape(-1, 1, 1, lines.shape[-1]), (1, size), antialias)
            rows = longer.reshape(*lines.shape[:-1], size).movedim(-1, axis)
    return torch.cat([prefix, rows.reshape(1, new.num_tokens, -1)], dim=1)


def _stretched(maps: Tensor, size: tuple[int, ...], antialias: bool) -> Tensor:
    """Maps ``[n, c, h, w]`` of another size, in their own dtype."""
    return F.interpolate(maps.float(), size, mode="bicubic", antialias=antialias, align_corners=False).to(maps.dtype)
