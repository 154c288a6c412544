"""What loading a checkpoint of another project comes to: its names in ours, its tables on our grid, all or nothing."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_blocks.encoders.timm import is_sincos
from ssl_blocks.grid import Grid
from ssl_blocks.parts.position import resample_positions

# beginnings of names in an objective
ENCODER, DECODER, HEAD = "encoder.module.", "reader.decoder.", "head."
TABLES = (f"{ENCODER}pos_embed", f"{DECODER}positions.table")


def own_tensors(objective: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of an objective by name, those that are saved nowhere included."""
    return {**dict(objective.named_parameters()), **dict(objective.named_buffers())}


def translated(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """A checkpoint under our names, given by their beginnings; all others are the encoder's."""
    known = {name: next((theirs for theirs in names if name.startswith(theirs)), "") for name in state}
    return {(names.get(known[name], ENCODER)) + name.removeprefix(known[name]): state[name] for name in state}


def fill(
    objective: nn.Module, found: Mapping[str, Tensor], *, encoder_only: bool, grid: Grid | None, num_prefix: int = 1
) -> None:
    """Fit the tables of positions, and copy what was found into every tensor of an objective, or change nothing.

    Args:
        objective: with an ``encoder``, and by the names above the rest.
        found: the checkpoint under our names.
        encoder_only: leave all but the encoder as it is.
        grid: of the checkpoint's tables; ``None`` is the encoder's, where that has as many tokens, or else a square.
        num_prefix: rows of prefix tokens in front of the checkpoint's tables.
    """
    ours: dict[str, Tensor] = own_tensors(objective)
    own_grid: Grid = objective.encoder.grid  # type: ignore[union-attr, assignment]
    if encoder_only:
        ours, found = ({n: t for n, t in each.items() if n.startswith(ENCODER)} for each in (ours, found))
    tables = {
        name: _fitted(name, found[name], ours[name], own_grid, grid, num_prefix)
        for name in TABLES
        if name in found and name in ours
    }
    copy_all({**found, **tables}, ours)


def copy_all(found: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Copy what was found into every tensor of ours, or change nothing.

    Raises:
        ValueError: if names, shapes or kinds of numbers differ.
    """
    _check(found, ours)
    with torch.no_grad():
        for name, value in ours.items():
            value.copy_(found[name])


def _fitted(name: str, table: Tensor, own: Tensor, new: Grid, given: Grid | None, num_prefix: int) -> Tensor:
    """Bring a table of ``[1, P + N, D]`` to our grid and rows: our decoders' have none for the class token."""
    old = _grid_of(name, table, new, given, num_prefix)
    if own.ndim == 3:
        return resample_positions(table, old=old, new=new, num_prefix=num_prefix)
    if isinstance(own, nn.Parameter):
        return resample_positions(table[:, num_prefix:], old=old, new=new)[0]
    if not is_sincos(table[0, num_prefix:], old):
        raise ValueError(
            f"{name}: the checkpoint's positions are not the fixed sine-cosine table: build the decoder with "
            "positions='learned'"
        )
    return own


def _grid_of(name: str, table: Tensor, own: Grid, given: Grid | None, num_prefix: int) -> Grid:
    """The grid of a table, of which its number of rows alone says little; one of sines and cosines tells by itself."""
    rows = table.shape[1] - num_prefix if table.ndim == 3 else 0
    square = math.isqrt(max(rows, 1))
    fitting = [grid for grid in ([own, Grid(square, square)] if given is None else [given]) if grid.num_tokens == rows]
    if not fitting:
        wanted = f"the grid {own}, or a square: give grid= of the checkpoint" if given is None else f"grid={given}"
        shape = tuple(table.shape)
        raise ValueError(
            f"{name}: the checkpoint's table of shape {shape} must be [1, {num_prefix} + N, D], N the tokens of "
            f"{wanted}"
        )
    return next((grid for grid in fitting if is_sincos(table[0, num_prefix:], grid)), fitting[0])


def _check(found: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(set(ours) - set(found)), sorted(set(found) - set(ours))
    if missing and any(name.startswith(f"{ENCODER}fc_norm.") for name in extra):
        raise ValueError(
            f"the checkpoint lacks {missing[0]}: its final norm lies behind the pooling (fc_norm), as fine-tuning puts "
            "it, and fits no tokens: take the file of pretraining"
        )
    if missing:
        raise ValueError(f"the checkpoint lacks {missing[0]} ({len(missing)} such): is the objective another one?")
    if extra:
        raise ValueError(f"the objective has no {extra[0]} ({len(extra)} such): is it built of other sizes?")
    for name, value in ours.items():
        if value.shape != found[name].shape:
            raise ValueError(
                f"{name} must have shape {tuple(value.shape)}, but the checkpoint's has {tuple(found[name].shape)}"
            )
        if value.is_floating_point() != found[name].is_floating_point():
            raise ValueError(f"{name} must be {value.dtype}, but the checkpoint's is {found[name].dtype}")
