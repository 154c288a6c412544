"""Encoders are loaded at other input sizes: tables of positions as resampled by hand, all else unchanged."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.encoders import TimmRegions, TokenRegions, TorchEncoder, export_encoder, load_encoder
from ssl_blocks.parts.position import resample_positions
from tests.encoders.families import FAMILIES
from tests.encoders.stored import ALL, REGIONS, TORCHVISION, build, images_for

HALF = (0.5, 0.25, 0.125)
ALIKE = {  # the same adapter, table and rows for the prefix as another
    *("timm CLIP", "timm SigLIP", "timm rope-vit, axial", "transformers DINOv2 with registers", "timm rope, rectangle"),
    *("nn.TransformerEncoder, norm last", "torch, gelu without biases", "torch, activations as modules"),
    *("torchvision, no head", "torchvision, representation", "ViT, mask token", "transformers ViT"),
    *("tokens of timm, class token", "tokens of torch, mean"),
}
SQUARES = {*TORCHVISION, "torchvision ViT", "tokens of torchvision, class token"}
TOKEN_KINDS = [name for name in ALL if name not in REGIONS and name not in ALIKE]


def save(encoder, folder: Path) -> Path:
    return export_encoder(encoder, folder / "encoder", tokenizer=None, mean=HALF, std=HALF)


def inner(encoder):
    return encoder.encoder if isinstance(encoder, TokenRegions) else encoder


def positions(encoder):
    """The table and its rows for prefix tokens."""
    return encoder._positions() if hasattr(encoder, "_positions") else (None, 0)


def by_hand(encoder, grid: sb.Grid, table, rows: int):
    """Features that the encoder itself computes on another grid with this table of positions."""
    encoder.grid = grid
    encoder._positions = lambda: (table, rows)
    return encoder.features(images_for(encoder))


@pytest.mark.parametrize("name", TOKEN_KINDS)
def test_another_size_is_what_resampling_by_hand_gives(name: str, tmp_path: Path) -> None:
    encoder = build(name)
    token_encoder = inner(encoder)
    patch = token_encoder.patch
    counts = (5, 5) if name in SQUARES else (3, 5, 2)[: len(patch)]
    size = tuple(count * side for count, side in zip(counts, patch, strict=True))
    again = load_encoder(save(encoder, tmp_path), image_size=size)
    resized = inner(again)
    assert resized.grid == sb.Grid(*counts)
    assert type(again) is type(encoder)
    images = images_for(resized)
    rotary = getattr(token_encoder, "rope_table", None) is not None or "mixed" in name
    with torch.no_grad():
        features = again.features(images)
        assert features.isfinite().all()
        (table, rows), (found, _) = positions(token_encoder), positions(resized)
        assert (table is None) == (found is None)
        if table is not None:
            table = resample_positions(table, old=token_encoder.grid, new=resized.grid, num_prefix=rows)
            assert torch.equal(found, table)
        if not rotary and not isinstance(encoder, TokenRegions):
            assert torch.equal(features, by_hand(encoder, resized.grid, table, rows))
        # what was loaded at another size is saved at that size
        if name in FAMILIES or name == "PostNormTransformer":  # every adapter
            assert torch.equal(load_encoder(save(again, tmp_path / "second")).features(images), features)


@pytest.mark.parametrize("name", ["timm rope-vit, axial", "timm rope-vit, mixed", "timm EVA-02", "transformers DINOv3"])
def test_rotations_of_another_size_are_the_models_own(name: str, tmp_path: Path) -> None:
    again = load_encoder(save(build(name), tmp_path), image_size=(12, 20))
    images = images_for(again)
    with torch.no_grad():
        mean = again.native(images)[:, again.num_prefix :].mean(1)
        torch.testing.assert_close(again.features(images), mean, rtol=1e-5, atol=1e-6)


def test_swin_and_convolutions(tmp_path: Path) -> None:
    for name in ("Swin", "ResNet", "ConvNeXt", "ViT's map"):
        encoder = build(name)
        again = load_encoder(save(encoder, tmp_path), image_size=(32, 24))
        assert isinstance(again, TimmRegions)
        sides = (64, 64) if name in ("ResNet", "ConvNeXt") else (32, 24)
        images = torch.randn(2, 3, *sides)
        with torch.no_grad():
            features = again.features(images)
            assert features.isfinite().all()
            if name in ("ResNet", "ConvNeXt"):
                assert torch.equal(features, encoder.features(images))
            assert torch.equal(load_encoder(save(again, tmp_path)).features(images), features)


def test_a_table_of_as_many_rows_is_resampled_all_the_same(tmp_path: Path) -> None:
    """4x4 and 2x8 have 16 tokens each."""
    for name in ("timm ViT", "transformers DINOv2", "nn.TransformerEncoder, norm first"):
        encoder = build(name)
        again = load_encoder(save(encoder, tmp_path), image_size=(8, 32))
        (table, rows), (found, _) = encoder._positions(), again._positions()
        expected = resample_positions(table, old=sb.Grid(4, 4), new=sb.Grid(2, 8), num_prefix=rows)
        assert torch.equal(found, expected)
        assert not torch.equal(found, table)


@pytest.mark.parametrize(
    ("name", "size"), [("timm ViT", 13), ("Swin", (16, 13)), ("PostNormTransformer", 13), ("torchvision ViT", (16, 13))]
)
def test_a_size_that_the_patch_does_not_divide_is_one_clear_error(
    name: str, size: int | tuple[int, int], tmp_path: Path
) -> None:
    folder = save(build(name), tmp_path)
    message = r"^image_size=.* must be a positive multiple of the encoder's patch of \dx\d pixels, got 13 for \d$"
    with pytest.raises(ValueError, match=message):
        load_encoder(folder, image_size=size)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "image_size=0 must be at least 1 and at most 32,768, or None"),
        ((16, -8), "image_size=(16, -8) must be several values, each at least 1 and at most 32,768, or None"),
    ],
)
def test_a_size_of_no_pixels_is_refused_before_anything_is_read(
    size: int | tuple[int, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_encoder(tmp_path / "missing", image_size=size)


def test_the_error_names_argument_value_and_patch(tmp_path: Path) -> None:
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 1, enable_nested_tensor=False)
    encoder = TorchEncoder(layers, stem=nn.Conv2d(3, 16, (4, 2), (4, 2)), grid=sb.Grid(2, 2))
    message = r"image_size=\(8, 5\) must be a positive multiple of the encoder's patch of 4x2 pixels, got 5 for 2"
    with pytest.raises(ValueError, match=message):
        load_encoder(save(encoder, tmp_path), image_size=(8, 5))
    with pytest.raises(ValueError, match=r"image_size=\(16, 8\) must be a square for torchvision's VisionTransformer"):
        load_encoder(save(build("torchvision ViT"), tmp_path), image_size=(16, 8))
    with pytest.raises(ValueError, match=r"image_size=10 must be .* patch of 4x4 pixels, got 10 for 4"):
        load_encoder(save(build("transformers ViT"), tmp_path), image_size=10)


@pytest.mark.parametrize("name", ["timm ViT", "torchvision ViT", "transformers ViT", "GridTransformer, volumes"])
@pytest.mark.parametrize("size", [(16,), (16, 16, 16, 16)])
def test_a_size_of_other_axes_is_refused(name: str, size: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"image_size=\(16,.*\) must have a number for each axis of the encoder's patch \("
    ):
        load_encoder(save(build(name), tmp_path), image_size=size)


@pytest.mark.parametrize("size", ["16", 16.0, (), (16, None)])
def test_a_size_of_another_type_is_refused(size: object, tmp_path: Path) -> None:
    folder = save(build("timm ViT"), tmp_path)
    with pytest.raises((TypeError, ValueError), match=r"image_size\S*=.* must (be|have) "):
        load_encoder(folder, image_size=size)
