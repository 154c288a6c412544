"""MAE's official layout of names goes into the objective whole, or not at all."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import ssl_blocks as sb
from ssl_blocks.objectives.weights import load_mae
from ssl_blocks.parts.position import resample_positions
from tests.recipes import images

BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def build(
    *,
    image_size: int | tuple[int, int] = 16,
    seed: int = 0,
    decoder_positions: str = "sincos",
    width: int = 24,
    **options,
):
    torch.manual_seed(seed)
    options = {"class_token": True, "embed_dim": 16, "depth": 2, "num_heads": 2} | options
    encoder = sb.encoders.timm_vit(image_size=image_size, patch_size=2, **options)
    tokenizer = sb.PatchTokenizer(image_size=image_size, patch_size=2)
    mae = sb.mae(
        encoder=encoder,
        tokenizer=tokenizer,
        target=sb.PixelTarget(tokenizer, normalize=True),
        decoder=sb.MaskTokenDecoder(
            grid=encoder.grid, dim=width, depth=1, num_heads=2, memory_dim=16, positions=decoder_positions
        ),
    )
    with torch.no_grad():
        for parameter in mae.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return mae.eval()


def official(mae: sb.SegmentPrediction) -> dict[str, Tensor]:
    """The weights under the names of MAE's own code, each written out."""
    vit, decoder = mae.encoder.module, mae.reader.decoder
    table = decoder.positions.table
    state = {
        "cls_token": vit.cls_token,
        "pos_embed": vit.pos_embed,
        "patch_embed.proj.weight": vit.patch_embed.proj.weight,
        "patch_embed.proj.bias": vit.patch_embed.proj.bias,
        "norm.weight": vit.norm.weight,
        "norm.bias": vit.norm.bias,
        "mask_token": decoder.mask_token,
        "decoder_pos_embed": torch.cat([torch.zeros(1, table.shape[1]), table])[None],
        "decoder_embed.weight": decoder.memory_proj.weight,
        "decoder_embed.bias": decoder.memory_proj.bias,
        "decoder_norm.weight": decoder.norm.weight,
        "decoder_norm.bias": decoder.norm.bias,
        "decoder_pred.weight": mae.head.weight,
        "decoder_pred.bias": mae.head.bias,
    }
    for name, blocks in (("blocks", vit.blocks), ("decoder_blocks", decoder.blocks)):
        for i, block in enumerate(blocks):
            for part in BLOCK:
                for kind in ("weight", "bias"):
                    state[f"{name}.{i}.{part}.{kind}"] = getattr(block.get_submodule(part), kind)
    return {name: value.detach().clone() for name, value in state.items()}


def loss(mae: sb.SegmentPrediction, batch: Tensor) -> Tensor:
    return mae(batch, mae.draw(batch, generator=torch.Generator().manual_seed(0))).loss


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_a_whole_checkpoint_goes_on_where_it_stood(tmp_path: Path, positions: str) -> None:
    one = build(seed=1, decoder_positions=positions)
    other = build(seed=2, decoder_positions=positions)
    torch.save({"model": official(one), "epoch": 7}, tmp_path / "mae.pth")
    assert not torch.equal(loss(one, images(2)), loss(other, images(2)))
    load_mae(other, tmp_path / "mae.pth")
    assert torch.equal(loss(one, images(2)), loss(other, images(2)))


def test_a_file_for_fine_tuning_gives_the_encoder_alone() -> None:
    one, other = build(seed=1), build(seed=2)
    head = other.head.weight.clone()
    state = {name: value for name, value in official(one).items() if "decoder" not in name and name != "mask_token"}
    with pytest.raises(ValueError, match="the checkpoint holds no decoder: give encoder_only=True"):
        load_mae(other, state)
    load_mae(other, state, encoder_only=True)
    assert torch.equal(one.encoder.features(images(2)), other.encoder.features(images(2)))
    assert torch.equal(other.head.weight, head)


def test_a_classifier_on_top_is_left_out_and_its_norm_behind_the_pooling_is_said() -> None:
    one, other = build(seed=1), build(seed=2)
    state = {name: value for name, value in official(one).items() if "decoder" not in name and name != "mask_token"}
    head = {"head.weight": torch.ones(5, 16), "head.bias": torch.ones(5)}
    fc_norm = {name.replace("norm.", "fc_norm.", name.startswith("norm.")): value for name, value in state.items()}
    with pytest.raises(ValueError, match=r"lacks encoder.module.norm.bias: .*\(fc_norm\)"):
        load_mae(other, fc_norm | head, encoder_only=True)
    load_mae(other, {"model": state | head}, encoder_only=True)
    assert torch.equal(one.encoder.features(images(2)), other.encoder.features(images(2)))


def test_a_whole_file_gives_the_encoder_alone_if_asked() -> None:
    one, other = build(seed=1), build(seed=2, width=48)
    load_mae(other, official(one), encoder_only=True)
    assert torch.equal(one.encoder.features(images(2)), other.encoder.features(images(2)))


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_positions_are_resampled_for_another_image_size(positions: str) -> None:
    one = build(seed=1, decoder_positions=positions, positions="learned")
    other = build(seed=2, image_size=24, decoder_positions=positions, positions="learned")
    load_mae(other, official(one))
    table = resample_positions(one.encoder.module.pos_embed, old=one.encoder.grid, new=other.encoder.grid, num_prefix=1)
    assert torch.equal(other.encoder.module.pos_embed, table)
    if positions == "sincos":
        torch.testing.assert_close(other.reader.decoder.positions.table, sb.parts.sincos_table(sb.Grid(12, 12), 24))
    assert torch.isfinite(loss(other, images(2, 24)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, r"the checkpoint lacks encoder.module.blocks.2.\S+ \(12 such\)"),
        ({"depth": 1}, r"the objective has no encoder.module.blocks.1.\S+ \(12 such\)"),
        ({"width": 48}, r"must have shape \(.*48.*\), but the checkpoint's has"),
        ({"class_token": False}, r"the objective has no encoder\.module\.cls_token \(1 such\)"),
    ],
)
def test_another_size_is_refused_and_nothing_is_changed(options: dict, message: str) -> None:
    other = build(seed=2, **options)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_mae(other, official(build(seed=1)))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_learned_positions_of_a_decoder_are_not_dropped() -> None:
    with pytest.raises(ValueError, match=r"positions are not the fixed sine-cosine table: .*positions='learned'"):
        load_mae(build(seed=2), official(build(seed=1, decoder_positions="learned")))


@pytest.mark.parametrize("size", [(8, 32), (8, 16), (16, 8)])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_a_table_of_the_same_rectangle_comes_back_as_it_was(size: tuple[int, int], positions: str) -> None:
    """4x16 has as many tokens as 8x8."""
    options = {"image_size": size, "positions": positions, "decoder_positions": positions}
    one, other = build(seed=1, **options), build(seed=2, **options)
    load_mae(other, official(one))
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_a_square_of_as_many_tokens_is_known_by_its_fixed_table_or_said(positions: str) -> None:
    one = build(seed=1, positions=positions)
    other = build(seed=2, positions=positions, image_size=(8, 32))
    load_mae(other, official(one), grid=None if positions == "sincos" else sb.Grid(8, 8))
    old = one.encoder.module.pos_embed
    table = resample_positions(old, old=sb.Grid(8, 8), new=sb.Grid(4, 16), num_prefix=1)
    assert torch.equal(other.encoder.module.pos_embed, table)
    assert not torch.equal(table, old)


def test_another_rectangle_has_to_be_said() -> None:
    one, other = build(seed=1, positions="learned", image_size=(8, 16)), build(seed=2, positions="learned")
    message = (
        r"table of shape \(1, 33, 16\) must be \[1, 1 \+ N, D\], N the tokens of the grid 8x8, or a square: give grid="
    )
    with pytest.raises(ValueError, match=message):
        load_mae(other, official(one))
    with pytest.raises(ValueError, match=r"N the tokens of grid=4x4"):
        load_mae(other, official(one), grid=sb.Grid(4, 4))
    load_mae(other, official(one), grid=sb.Grid(4, 8))
    table = resample_positions(one.encoder.module.pos_embed, old=sb.Grid(4, 8), new=sb.Grid(8, 8), num_prefix=1)
    assert torch.equal(other.encoder.module.pos_embed, table)
