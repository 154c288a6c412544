"""What all kinds of stored encoders share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn

from ssl_blocks.parts.position import resample_positions
from ssl_blocks.parts.tokenize import pair
from ssl_blocks.values import Grid


@dataclass(frozen=True)
class Stored:
    """An encoder as plain values and weights.

    Attributes:
        architecture: name of the kind, which says who builds it again.
        model_args: what it is built from; all of it goes into JSON.
        state: its weights.
    """

    architecture: str
    model_args: dict[str, Any]
    state: Mapping[str, Tensor]


class ImageSizeError(ValueError):
    """An input size that the encoder cannot have: wrong input, whatever the folder holds."""


def grid_for(image_size: int | tuple[int, int], patch: tuple[int, int]) -> Grid:
    """The grid of an input size.

    Raises:
        ImageSizeError: if the patch does not divide it.
    """
    sides = pair(image_size)
    for length, side in zip(sides, patch, strict=True):
        if length < 1 or length % side:
            raise ImageSizeError(
                f"image_size={image_size} must be a positive multiple of the encoder's patch of {patch[0]}x{patch[1]} "
                f"pixels, got {length} for {side}"
            )
    return Grid(sides[0] // patch[0], sides[1] // patch[1])


def resampled(table: Tensor, *, old: Grid, new: Grid) -> Tensor:
    """A table of positions for another grid, in the dimensions that it has; what precedes the grid's rows stays."""
    dim = table.shape[-1]
    flat = table.reshape(1, -1, dim)
    rows = resample_positions(flat, old=old, new=new, num_prefix=flat.shape[1] - old.num_tokens)
    return rows.reshape(*table.shape[:-2], -1, dim)


def refuse(owner: str, reason: str) -> NoReturn:
    """Say why an encoder cannot be exported.

    Raises:
        TypeError: always.
    """
    raise TypeError(f"{owner} cannot be exported: {reason}")


def require_type(owner: str, name: str, part: object, expected: type) -> None:
    """Refuse a part that is of a type of its own, a derived one too: another one would be built.

    Raises:
        TypeError: naming both.
    """
    if type(part) is not expected:
        home = "nn." if hasattr(nn, expected.__name__) else "torchvision's "
        refuse(owner, f"{name} is a {type(part).__name__}, expected {home}{expected.__name__}")


def require_same(owner: str, module: nn.Module, again: nn.Module, *, passed_over: tuple[str, ...] = ()) -> None:
    """Refuse a model that is not built again as it is.

    Args:
        owner: what it is called in the error.
        module: the model.
        again: what its description builds.
        passed_over: names at whose start nothing is compared.

    Raises:
        TypeError: naming the first part or weight that differs.
    """
    for found, built in ((_parts(module), _parts(again)), (_shapes(module), _shapes(again))):
        for name in [*found, *(name for name in built if name not in found)]:
            ours, theirs = found.get(name, "missing"), built.get(name, "nothing")
            if ours != theirs and not name.startswith(passed_over):
                refuse(owner, f"{name} is {ours}, and {theirs} is what would be built again")


def _parts(module: nn.Module) -> dict[str, str]:
    """What every layer is, its sizes and rates included."""
    return {name: _words(part) for name, part in module.named_modules(remove_duplicate=False) if name}


def _words(part: nn.Module) -> str:
    more = part.extra_repr()
    if isinstance(part, nn.MultiheadAttention):  # which says nothing of itself
        more = f"heads={part.num_heads}, dropout={part.dropout}, batch_first={part.batch_first}"
    home = type(part).__module__.partition(".")[0]
    return f"{home}'s {type(part).__name__}({more})"


def _shapes(module: nn.Module) -> dict[str, str]:
    return {name: f"of shape {tuple(weight.shape)}" for name, weight in module.state_dict().items()}
