"""Reading files of weights, and nothing but weights."""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ssl_blocks.doors import checked
from ssl_blocks.files import at_home

Source = str | Path | Mapping[str, Any]
NESTS = ("model", "state_dict", "module")  # under which training scripts keep the weights
WRAPPERS = ("module.", "_orig_mod.")  # what distributed training and torch.compile put in front of every name


@checked
def read_state(source: Source) -> dict[str, Tensor]:
    """Read a file of weights, or take them out of a checkpoint that is loaded already.

    Files are read with ``weights_only=True``, beside which only ``argparse.Namespace``, the options of a training
    script, may be in them: one that would run code is refused.

    Args:
        source: a ``.safetensors`` file, a file of ``torch.save``, or a mapping; weights may lie under ``model``,
            ``state_dict`` or ``module``.

    Returns:
        Tensors by name, on CPU, without the prefixes ``module.`` of distributed training and ``_orig_mod.`` of
        ``torch.compile``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of weights, holds more than weights, or holds no tensors.

    Examples:
        >>> sorted(read_state({"model": {"module.weight": torch.zeros(2)}, "epoch": 3}))
        ['weight']
    """
    values = read_checkpoint(source)
    for nest in NESTS:
        inner = values.get(nest)
        if isinstance(inner, Mapping):
            values = dict(inner)
    state = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if not state:
        where = "the mapping" if isinstance(source, Mapping) else str(source)
        raise ValueError(f"{where} must hold tensors by name, got {sorted(map(str, values))[:5]}")
    while wrapper := next((w for w in WRAPPERS if all(name.startswith(w) for name in state)), None):
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def read_checkpoint(source: Source) -> dict[str, Any]:
    """Everything that a file of weights holds, or a checkpoint that is loaded already, as it lies there."""
    return dict(source) if isinstance(source, Mapping) else _read(at_home(source))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file of weights, and is not there")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is no readable .safetensors file: {error}") from None
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain values by name: nothing runs
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is refused: it holds more than weights, and loading it could run code of whoever made it "
            f"({reason}). If you trust it, save its state_dict anew: torch.save(model.state_dict(), ...)"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is no readable file of weights: {(str(error) or 'it ends early').splitlines()[0]}"
        ) from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must hold tensors by name, got {type(values).__name__}")
    return dict(values)
