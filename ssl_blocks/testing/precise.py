"""Weights for a while: shaken, in another precision, and put back to the bit; random choices that can be repeated."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from ssl_blocks.testing.role_case import shake


@contextmanager
def all_kept(model: nn.Module, *, dtype: torch.dtype | None = None, shaken: bool = False) -> Iterator[None]:
    """Lend out a model, and put back its modes, weights, buffers and plain attributes, to the bit and to the object.

    Meanwhile floating-point weights and buffers have the ``dtype`` (``None``: each its own). ``shaken`` moves every
    weight by noise, and every zero buffer of one value (a gate that is shut).
    """
    spaces = [space for part in model.modules() for space in (vars(part), part._parameters, part._buffers)]
    kept = [(space, dict(space)) for space in spaces]
    tensors = [*model.parameters(), *model.buffers()]
    data = [tensor.data for tensor in tensors]
    own = torch.get_default_dtype()
    try:
        for tensor in tensors:
            fits = dtype is None or not tensor.is_floating_point()
            tensor.data = tensor.data.clone() if fits else tensor.data.to(dtype, copy=True)
        if dtype is not None:
            torch.set_default_dtype(dtype)  # of what a model makes while it runs
        if shaken:
            shake(model)
            _open_gates(model)
        yield
    finally:
        torch.set_default_dtype(own)
        for tensor, was in zip(tensors, data, strict=True):
            tensor.data = was
        for space, before in kept:
            space.clear()
            space.update(before)


@torch.no_grad()
def _open_gates(model: nn.Module) -> None:
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer.numel() == 1 and not bool(buffer.any()):
            buffer.add_(0.1)


def zero_weights(models: nn.ModuleList) -> list[str]:
    """Names, in their model, of weights of more than one axis that are zero throughout, and of gates that are shut."""
    named = [pair for model in models for pair in (*model.named_parameters(), *model.named_buffers())]
    return [
        name
        for name, x in named
        if x.is_floating_point() and (x.ndim > 1 or x.numel() == 1) and x.numel() and not bool(x.any())
    ]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Begin torch's, numpy's and Python's own random states at a seed, and put them back as they were."""
    mine, theirs = random.getstate(), np.random.get_state()  # noqa: NPY002 (a user's code may draw from it)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch's own takes long over absent devices
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(mine)
            np.random.set_state(theirs)  # noqa: NPY002
