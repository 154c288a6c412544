"""Exported encoders of every kind, with weights drawn anew."""

from pathlib import Path

import pytest
import timm
import torch

from ssl_blocks import encoders
from ssl_blocks.encoders import export_encoder
from ssl_blocks.parts.position import sincos_table
from tests.encoders.families import family, images_for

HALF = (0.5, 0.5, 0.5)


def save(encoder: encoders.FeatureEncoder, folder: Path) -> Path:
    half = (0.5,) * encoder.channels
    return export_encoder(encoder, folder, tokenizer=None, mean=half, std=half)


def build(seed: int, **options) -> encoders.TimmViT:
    torch.manual_seed(seed)
    return encoders.timm_vit(image_size=8, patch_size=2, depth=2, embed_dim=16, num_heads=2, **options)


@pytest.mark.parametrize("positions", ["sincos", "learned", "none"])
@pytest.mark.parametrize("class_token", [False, True])
def test_a_timm_encoder_is_drawn_as_it_was_built(positions: str, class_token: bool, tmp_path: Path) -> None:
    options = {"positions": positions, "class_token": class_token}
    first, trained = build(7, **options), build(7, **options)
    with torch.no_grad():
        for name, parameter in trained.module.named_parameters():
            if parameter.requires_grad:
                parameter.add_(1 + torch.rand_like(parameter))
            assert name
    folder = save(trained, tmp_path / "encoder")
    before = torch.random.get_rng_state()
    again = encoders.untrained(folder, seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, weight in first.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], weight), name
    other = encoders.untrained(folder, seed=8).module.state_dict()
    assert not torch.equal(other["blocks.0.attn.qkv.weight"], first.module.state_dict()["blocks.0.attn.qkv.weight"])


def test_fixed_positions_stay_fixed_at_another_size(tmp_path: Path) -> None:
    folder = save(build(0), tmp_path / "encoder")
    larger = encoders.untrained(folder, seed=0, image_size=16)
    assert torch.equal(larger.module.pos_embed[0], sincos_table(larger.grid, 16))
    assert larger.features(torch.rand(1, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize(
    "name",
    [
        *("timm DINOv2 with registers", "timm EVA-02", "timm rope-vit, mixed", "torchvision ViT"),
        *("transformers DINOv2 with registers", "transformers DINOv3"),
        *("nn.TransformerEncoder, norm last", "GridTransformer, volumes"),
    ],
)
def test_every_kind_has_nothing_left_of_what_was_trained(name: str, tmp_path: Path) -> None:
    encoder = family(name)
    folder = save(encoder, tmp_path / "encoder")
    again = encoders.untrained(folder, seed=0)
    assert type(again) is type(encoders.load_encoder(folder))
    stored = encoder.gathered() if isinstance(encoder, encoders.TorchEncoder) else encoder.module
    for (where, old), new in zip(stored.named_parameters(), again.module.parameters(), strict=True):
        assert new.isfinite().all(), where
        assert not torch.equal(old, new), where
    images = images_for(encoder)
    same, other = encoders.untrained(folder, seed=0), encoders.untrained(folder, seed=1)
    with torch.no_grad():
        assert torch.equal(again.features(images), same.features(images))
        assert not torch.allclose(again.features(images), other.features(images))


def test_regions_and_pooled_models_are_drawn_anew(tmp_path: Path) -> None:
    size = {"patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
    regions = encoders.timm_regions(image_size=32, **size)
    images = torch.rand(2, 3, 32, 32)
    again = encoders.untrained(save(regions, tmp_path / "swin"), seed=0)
    assert isinstance(again, encoders.TimmRegions)
    assert not torch.allclose(again.features(images), regions.eval().features(images))
    pooled = encoders.TimmPooled(timm.create_model("test_vit", num_classes=0, img_size=32).eval())
    folder = save(pooled, tmp_path / "pooled")
    loaded = encoders.load_encoder(folder)
    assert isinstance(loaded, encoders.TimmPooled)
    assert torch.equal(loaded.features(images), pooled.features(images))
    assert not torch.allclose(encoders.untrained(folder, seed=1).features(images), pooled.features(images))


def test_models_that_timm_pools_by_itself() -> None:
    with pytest.raises(ValueError, match="has a classifier of 1000 classes: build it with num_classes=0"):
        encoders.TimmPooled(timm.create_model("test_vit"))
    with pytest.raises(TypeError, match="Linear is no image model of timm"):
        encoders.TimmPooled(torch.nn.Linear(3, 3))
    encoder = encoders.TimmPooled(timm.create_model("test_vit", num_classes=0).eval())
    images = torch.rand(2, 3, *encoder.module.patch_embed.img_size)
    assert torch.equal(encoder.features(images), encoder.module(images))
    assert encoder.features(images).shape == (2, encoder.dim)
    with pytest.raises(ValueError, match="refuses images of 3x9x9 pixels"):
        encoder.features(torch.rand(2, 3, 9, 9))
