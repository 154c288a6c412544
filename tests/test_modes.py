"""Modules without weights are built as others are, and nothing is worked out for them."""

import timm
import torch
from torch import nn

from ssl_blocks.modes import without_weights


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
    with without_weights():
        layer = nn.Linear(2, 3)
        given = torch.zeros(2, device="cpu")
        given.add_(1)
        assert nn.init.trunc_normal_(layer.weight) is layer.weight
    assert torch.equal(torch.get_rng_state(), before)
    assert given.tolist() == [1.0, 1.0]  # what holds values is filled as ever
    assert torch.empty(2).fill_(3.0).tolist() == [3.0, 3.0]  # and all is as before afterwards
