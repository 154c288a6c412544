"""Modules without weights are built as others are, and nothing is worked out for them."""

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_blocks.modes import without_weights


class Filled(TorchDispatchMode):
    """Notes what is worked out in place for tensors without values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(args[0], Tensor) and args[0].is_meta and func._schema.is_mutable:
            self.found.add(func._opname)
        return func(*args, **kwargs or {})


def described(module: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
    values = [*module.named_parameters(), *module.named_buffers()]
    return {name: (value.shape, value.dtype, value.requires_grad) for name, value in values}


def test_they_have_the_same_parameters_and_buffers_and_no_values() -> None:
    name, size = "swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)}
    with without_weights():
        blank = timm.create_model(name, **size)
    assert described(blank) == described(timm.create_model(name, **size))
    assert all(value.is_meta for value in blank.parameters())


def test_nothing_is_filled_and_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    with Filled() as filled, without_weights():
        layer = nn.Linear(2, 3)
        given = torch.zeros(2, device="cpu")
        given.add_(1)
        assert timm.layers.trunc_normal_(layer.weight) is layer.weight
        nn.init.zeros_(layer.bias)
    assert filled.found <= {"uniform_"}  # which torch makes nothing of
    assert torch.equal(torch.get_rng_state(), before)
    assert given.tolist() == [1.0, 1.0]  # what holds values is filled as ever
    assert torch.empty(2).fill_(3.0).tolist() == [3.0, 3.0]  # and all is as before afterwards
