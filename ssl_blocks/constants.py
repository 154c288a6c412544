"""Small tables of numbers, on the device where they are used."""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

# never emptied: a CUDA graph reads a table at the address that it had when it was captured
_MADE: dict[tuple[tuple[float, ...], torch.device, torch.dtype], Tensor] = {}


def constant(
    values: Sequence[float] | Sequence[int], *, like: Tensor, dtype: torch.dtype | None = None
) -> Shaped[Tensor, "{len(values)}"]:
    """Return Python numbers as a tensor on the device of another one, made once for each device.

    ``torch.tensor(values, device=...)`` copies from the host, and an accelerator is waited for in every call. A table
    is shared by all who ask for it: never write into it.

    Args:
        values: at least one number.
        like: gives the device.
        dtype: torch's default type where ``None``.

    Examples:
        >>> constant((1, 2), like=torch.zeros(1))
        tensor([1., 2.])
    """
    numbers, dtype = tuple(values), torch.get_default_dtype() if dtype is None else dtype
    if torch.compiler.is_compiling() or type(like) is not Tensor:
        return _filled(numbers, like.device, dtype)  # what a trace makes belongs to it alone
    key = (numbers, like.device, dtype)
    if key not in _MADE:
        if like.is_cuda and torch.cuda.is_current_stream_capturing():
            return _filled(numbers, like.device, dtype)  # as does what a capture makes
        with torch.inference_mode(False):  # a backward pass may need it later
            _MADE[key] = torch.tensor(numbers, dtype=dtype, device=like.device)
    return _MADE[key]


def _filled(numbers: tuple[float, ...] | tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Without a copy from the host."""
    return torch.stack([torch.full((), number, dtype=dtype, device=device) for number in numbers])
