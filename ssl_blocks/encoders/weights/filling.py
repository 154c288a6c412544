"""What loading a checkpoint of another project comes to: fitting its tables, and filling all or nothing."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ssl_blocks.parts.position import resample_positions, sincos_table
from ssl_blocks.values import Grid

ENCODER = "encoder.module."  # beginning of the encoder's names in an objective
TOLERANCE = 1e-5  # of sines that were computed in another order


def own_tensors(objective: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of an objective by name, those that are saved nowhere included."""
    return {**dict(objective.named_parameters()), **dict(objective.named_buffers())}


def fit_table(name: str, table: Tensor, own: Tensor, grid: Grid) -> Tensor:
    """Bring a table of ``[1, 1 + N, D]`` to our grid and rows: our decoders' have none for the class token.

    Args:
        name: of the table, in errors.
        table: the checkpoint's.
        own: the objective's.
        grid: of the objective's encoder.

    Raises:
        ValueError: if the table has another form, or is to go where fixed sine-cosine positions are and is none.
    """
    side = math.isqrt(max(table.shape[1] - 1, 0)) if table.ndim == 3 else 0
    if side == 0 or side * side != table.shape[1] - 1:
        raise ValueError(
            f"{name}: the checkpoint's table of shape {tuple(table.shape)} must be [1, 1 + N, D], N a square"
        )
    old = Grid(side, side)
    if own.ndim == 3:
        return resample_positions(table, old=old, new=grid, num_prefix=1)
    if isinstance(own, nn.Parameter):
        return resample_positions(table[:, 1:], old=old, new=grid)[0]
    if (table[0, 1:] - sincos_table(old, table.shape[-1])).abs().max() > TOLERANCE:
        raise ValueError(
            f"{name}: the checkpoint's positions are not the fixed sine-cosine table: build the decoder with "
            "positions='learned'"
        )
    return own


def fill(ours: Mapping[str, Tensor], found: Mapping[str, Tensor], wanted: Iterable[str]) -> None:
    """Copy what was found into every wanted tensor, or change nothing.

    Raises:
        ValueError: if a name is missing or left over, or a shape is another.
    """
    wanted = list(wanted)
    _check(found, {name: ours[name] for name in wanted})
    with torch.no_grad():
        for name in wanted:
            ours[name].copy_(found[name])


def _check(found: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(set(ours) - set(found)), sorted(set(found) - set(ours))
    if missing:
        raise ValueError(f"the checkpoint lacks {missing[0]} ({len(missing)} such): is the objective another one?")
    if extra:
        raise ValueError(f"the objective has no {extra[0]} ({len(extra)} such): is it built of other sizes?")
    for name, value in ours.items():
        if value.shape != found[name].shape:
            raise ValueError(
                f"{name} must have shape {tuple(value.shape)}, but the checkpoint's has {tuple(found[name].shape)}"
            )
