"""Maps of features of many models: normalised, in raster order, and honest about what they cannot do."""

import pytest
import timm
import torch
from torch import Tensor, nn

import ssl_blocks as sb
from ssl_blocks.encoders import timm_regions, timm_vit
from ssl_blocks.modes import without_weights
from tests.recipes import images

SMALL = {"patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)}


def swin(**options) -> sb.encoders.TimmRegions:
    torch.manual_seed(0)
    encoder = timm_regions(image_size=32, **SMALL | options)
    encoder.module.eval()
    return encoder


def vit(class_token: bool = True, **options) -> sb.encoders.TimmViT:
    torch.manual_seed(0)
    size = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm_vit(image_size=16, patch_size=4, class_token=class_token, **size, **options).eval()


def test_swin_is_the_plain_models_own_map_and_call() -> None:
    encoder, batch = swin(), images(3, 32)
    regions = encoder.regions(batch)
    plain = encoder.module.forward_features(batch)  # [B, H, W, D], normalised
    torch.testing.assert_close(regions.map, plain.flatten(1, 2))
    assert str(regions.grid) == "8x8"
    torch.testing.assert_close(encoder.features(batch), encoder.module(batch))
    assert isinstance(encoder, sb.encoders.RegionEncoder)
    assert (encoder.dim, encoder.channels) == (32, 3)
    assert encoder.norm is encoder.module.norm


@pytest.mark.parametrize("name", ["pvt_v2_b0", "convnext_atto", "resnet18", "davit_tiny"])
def test_families_of_timm(name: str) -> None:
    torch.manual_seed(0)
    size = {"embed_dims": (8, 16, 24, 32), "num_heads": (1,) * 4} if name == "davit_tiny" else {}
    model = timm.create_model(name, num_classes=0, in_chans=1, **size).eval()
    encoder = sb.encoders.TimmRegions(model)
    with torch.no_grad():
        regions = encoder.regions(images(2, 64, channels=1))
        last = model.forward_intermediates(images(2, 64, channels=1), indices=1, intermediates_only=True)[-1]
    count = 4
    assert regions.map.shape == (2, count, encoder.dim)
    assert encoder.channels == 1
    torch.testing.assert_close(regions.pooled, regions.map.mean(1))
    if "convnext" in name or "davit" in name:  # the norm of the head, for every region alone
        expected = nn.functional.layer_norm(last.flatten(2).transpose(1, 2), (encoder.dim,), eps=encoder.norm.eps)
        torch.testing.assert_close(regions.map, expected, rtol=1e-4, atol=1e-5)
    if name in ("pvt_v2_b0", "resnet18"):  # normalised inside
        torch.testing.assert_close(regions.map, last.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "pvt_v2_b0", "convnext_atto"])
def test_crops_of_other_sizes_run(name: str) -> None:
    with without_weights():
        encoder = timm_regions(name, image_size=224, depths=(1,) * 4)
        assert str(encoder.regions(torch.zeros(1, 3, 224, 224)).grid) == "7x7"
        assert str(encoder.regions(torch.zeros(1, 3, 96, 96)).grid) == "3x3"


def test_small_swin_takes_local_crops_and_learns_from_them() -> None:
    encoder = swin()
    regions = encoder.regions(images(2, 16))
    assert str(regions.grid) == "4x4"
    regions.map.square().sum().backward()
    assert all(p.grad is not None for p in encoder.module.parameters())
    assert "module.layers.0.blocks.0.attn.relative_position_bias_table" in encoder.no_weight_decay()


def test_a_given_norm_is_used() -> None:
    model = timm.create_model("convnext_atto", num_classes=0).eval()
    plain, normed = (
        sb.encoders.TimmRegions(model, norm=nn.Identity()),
        sb.encoders.TimmRegions(model, norm=nn.LayerNorm(320)),
    )
    with torch.no_grad():
        a, b = (encoder.regions(images(1, 64)).map for encoder in (plain, normed))
    torch.testing.assert_close(nn.functional.layer_norm(a, (320,)), b)
    assert "given_norm.weight" in normed.state_dict()
    assert not any("norm" in name and "module" not in name for name in plain.state_dict())


def test_tokens_are_those_of_the_token_encoder() -> None:
    inner, batch = vit(), images(2, 16)
    encoder = sb.encoders.TokenRegions(inner)
    regions = encoder.regions(batch)
    final = inner.encode(inner.embed(batch), torch.arange(16).expand(2, -1)).final
    torch.testing.assert_close(regions.map, final[:, 1:])
    torch.testing.assert_close(regions.pooled, final[:, 0])
    torch.testing.assert_close(encoder.features(batch), final[:, 0])
    mean = sb.encoders.TokenRegions(inner, class_token=False).regions(batch).pooled
    torch.testing.assert_close(mean, final[:, 1:].mean(1))
    without = sb.encoders.TokenRegions(vit(class_token=False))
    torch.testing.assert_close(without.features(batch), without.encoder.features(batch))
    assert isinstance(encoder, sb.encoders.RegionEncoder)
    assert encoder.module is inner.module


def test_the_exported_class_token_is_that_of_plain_timm() -> None:
    encoder, batch = sb.encoders.TokenRegions(vit(global_pool="token")), images(2, 16)
    torch.testing.assert_close(encoder.module(batch), encoder.features(batch))


def test_small_crops_lie_on_evenly_spread_cells() -> None:
    inner, crop = vit(), images(2, 16)[..., :8, :12]
    regions = sb.encoders.TokenRegions(inner).regions(crop)
    assert str(regions.grid) == "2x3"
    rows, columns = (1, 3), (0, 2, 3)
    index = torch.tensor([row * 4 + column for row in rows for column in columns])
    patches = [crop[..., 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] for y in range(2) for x in range(3)]
    expected = inner.encode(inner.embed(torch.stack(patches, 1)), index.expand(2, -1)).final
    torch.testing.assert_close(regions.map, expected[:, 1:])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (images(1, 20), "VisionTransformer refuses images of 3x20x20 pixels: expected 3 channels and at most 4x4"),
        (images(1, 6), "refuses images of 3x6x6 pixels: .* patches of 4x4"),
        (images(1, 16, channels=1), "refuses images of 1x16x16 pixels"),
    ],
)
def test_crops_that_do_not_fit_the_patches_are_refused(batch: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sb.encoders.TokenRegions(vit()).regions(batch)


def test_crops_that_a_backbone_refuses_are_named_with_it() -> None:
    plain = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **SMALL, img_size=32)
    with pytest.raises(ValueError, match=r"SwinTransformer refuses images of 3x16x16 pixels: Input height \(16\)"):
        sb.encoders.TimmRegions(plain).regions(images(1, 16))
    with pytest.raises(ValueError, match=r"SwinTransformer refuses images of 1x32x32 pixels: .*channels"):
        swin().regions(images(1, 32, channels=1))


def test_models_without_a_map_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no map of regions: expected an image model of timm"):
        sb.encoders.TimmRegions(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="Encoder has no map"):
        sb.encoders.TimmRegions(type("Encoder", (nn.Sequential,), {})(nn.Conv2d(3, 3, 1)))


def test_a_norm_that_is_not_found_is_asked_for() -> None:
    with without_weights():
        model = timm.create_model("swinv2_cr_tiny_224", num_classes=0)
    with pytest.raises(
        ValueError, match=r"final norm of SwinTransformerV2Cr was not found in norm or head.norm, .* give"
    ):
        sb.encoders.TimmRegions(model)


def test_wrong_models_are_named() -> None:
    with pytest.raises(ValueError, match="name='swin_tiny' is no timm model; did you mean one of"):
        timm_regions("swin_tiny", image_size=32)
    with pytest.raises(ValueError, match=r"name='resnet18' cannot be built with {'window_size': 4}"):
        timm_regions("resnet18", image_size=32, window_size=4)
    with pytest.raises(ValueError, match="class_token=True needs an encoder with a prefix token"):
        sb.encoders.TokenRegions(vit(class_token=False), class_token=True)
