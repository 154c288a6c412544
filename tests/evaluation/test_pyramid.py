"""The feature pyramid: which hidden state makes which map, and what is trained."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_blocks import encoders
from ssl_blocks.encoders import TimmViT
from ssl_blocks.evaluation import FeaturePyramid
from tests import reference


def make_encoder(*, depth: int = 8, image_size: Any = (12, 20), patch_size: Any = 4, **options: Any) -> TimmViT:
    torch.manual_seed(0)
    return encoders.timm_vit(
        image_size=image_size, patch_size=patch_size, depth=depth, embed_dim=16, num_heads=2, **options
    )


def make_images(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def channel_norm(x: Tensor, norm: nn.Module) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("options", [{}, {"class_token": True, "reg_tokens": 2}])
@pytest.mark.parametrize("depth", [4, 8])
def test_maps_equal_those_made_cell_by_cell(depth: int, options: dict[str, Any]) -> None:
    """On a grid of 3x5: no square, and odd."""
    encoder, images = make_encoder(depth=depth, **options), make_images(12, 20)
    pyramid = FeaturePyramid(encoder, out_channels=6).eval()
    for parameter in pyramid.levels.parameters():  # norms start at 1 and 0, which would hide them
        nn.init.normal_(parameter)
    index = torch.arange(15).expand(2, -1)
    hidden = encoder.encode(encoder.embed(images), index).hidden
    states = [reference.map_of_tokens(hidden[depth // 4 * (i + 1) - 1], 3, 5, encoder.num_prefix) for i in range(4)]
    first, norm, _, second = pyramid.levels[0][0]
    fourfold = F.gelu(channel_norm(reference.doubled(states[0], first.weight, first.bias), norm))
    twofold = pyramid.levels[1][0]
    resized = [
        reference.doubled(fourfold, second.weight, second.bias),
        reference.doubled(states[1], twofold.weight, twofold.bias),
        states[2],
        reference.halved(states[3]),
    ]
    maps = pyramid(images)
    assert list(maps) == ["0", "1", "2", "3"]
    for made, level, expected in zip(maps.values(), pyramid.levels, resized, strict=True):
        mixed = torch.einsum("bchw,oc->bohw", expected, level[1].weight[:, :, 0, 0]) + level[1].bias[:, None, None]
        torch.testing.assert_close(made, channel_norm(mixed, level[2]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("patch", "strides"),
    [(16, (4, 8, 16, 32)), (4, (1, 2, 4, 8)), (14, (3.5, 7, 14, 28)), ((8, 4), None)],
)
def test_strides(patch: Any, strides: tuple[float, ...] | None) -> None:
    size = (patch * 4, patch * 2) if isinstance(patch, int) else (32, 8)
    pyramid = FeaturePyramid(make_encoder(depth=4, image_size=size, patch_size=patch), out_channels=4)
    expected = ((2, 1), (4, 2), (8, 4), (16, 8)) if strides is None else tuple((s, s) for s in strides)
    assert pyramid.strides == expected
    for level, (vertical, horizontal) in zip(pyramid(make_images(*size)).values(), expected, strict=True):
        assert level.shape[2:] == (size[0] / vertical, size[1] / horizontal)


def blocks_reached(pyramid: FeaturePyramid, encoder: TimmViT, level: str) -> set[int]:
    encoder.zero_grad()
    pyramid(make_images(12, 20))[level].square().sum().backward()
    return {i for i, block in enumerate(encoder.module.blocks) if block.mlp.fc1.weight.grad is not None}


def test_a_map_depends_on_the_blocks_up_to_its_group_alone() -> None:
    encoder = make_encoder(depth=8)
    pyramid = FeaturePyramid(encoder, out_channels=4)
    for level, count in (("0", 2), ("1", 4), ("2", 6), ("3", 8)):
        assert blocks_reached(pyramid, encoder, level) == set(range(count))


def test_frozen_encoder_gets_no_gradient_and_evaluates() -> None:
    encoder = make_encoder(depth=4, pos_drop_rate=0.5)
    pyramid = FeaturePyramid(encoder, out_channels=4, freeze=True).train()
    assert not any(part.training for part in encoder.modules())
    assert pyramid.levels.training
    images = make_images(12, 20)
    torch.testing.assert_close(pyramid(images), pyramid(images))  # dropout would make a difference
    sum(level.square().sum() for level in pyramid(images).values()).backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None for p in pyramid.levels.parameters())
    assert all(p.requires_grad for n, p in encoder.named_parameters() if "pos_embed" not in n)  # still the user's own

    thawed = FeaturePyramid(encoder, out_channels=4).train()
    assert all(part.training for part in encoder.modules())
    sum(level.square().sum() for level in thawed(images).values()).backward()
    assert all(block.mlp.fc1.weight.grad is not None for block in encoder.module.blocks)


def test_an_adapter_that_is_no_module_is_found_through_its_model() -> None:
    inner = make_encoder(depth=4)

    class Plain:
        dim, depth, grid, patch, channels = inner.dim, inner.depth, inner.grid, inner.patch, inner.channels
        num_prefix, module, norm = inner.num_prefix, inner.module, inner.norm

        def embed(self, x: Tensor) -> Tensor:
            return inner.embed(x)

        def encode(self, tokens: Tensor, index: Tensor | None, mask: Tensor | None = None) -> Any:
            return inner.encode(tokens, index, mask)

        def features(self, images: Tensor) -> Tensor:
            return inner.features(images)

    pyramid = FeaturePyramid(Plain(), out_channels=4)
    assert set(inner.module.parameters()) <= set(pyramid.parameters())
    torch.manual_seed(0)
    other = FeaturePyramid(inner, out_channels=4)
    other.levels.load_state_dict(pyramid.levels.state_dict())
    torch.testing.assert_close(pyramid(make_images(12, 20)), other(make_images(12, 20)))


def test_spared_parameters_exist() -> None:
    pyramid = FeaturePyramid(make_encoder(depth=4, class_token=True), out_channels=4)
    spared = pyramid.no_weight_decay() & set(dict(pyramid.named_parameters()))
    assert spared == {"encoder.module.pos_embed", "encoder.module.cls_token"}


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="encoder of depth 6 must have a multiple of four blocks"):
        FeaturePyramid(make_encoder(depth=6))
    with pytest.raises(ValueError, match="out_channels=0 must be at least 1"):
        FeaturePyramid(make_encoder(depth=4), out_channels=0)
    pyramid = FeaturePyramid(make_encoder(depth=4), out_channels=4)
    with pytest.raises(ValueError, match=r"images of shape \(2, 3, 20, 20\) must be the encoder's, \[B, 3, 12, 20\]"):
        pyramid(make_images(20, 20))


def test_features_that_are_not_finite_are_named() -> None:
    encoder = make_encoder(depth=8)
    pyramid = FeaturePyramid(encoder, out_channels=4)
    pyramid.check_finite(make_images(12, 20))
    with torch.no_grad():
        encoder.module.blocks[2].mlp.fc2.bias[0] = float("nan")
    with pytest.raises(ValueError, match="hidden state after block 4 of 8 must be finite"):
        pyramid.check_finite(make_images(12, 20))
