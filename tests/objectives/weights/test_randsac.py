"""The layout of RandSAC's pseudocode goes into the objective whole, or not at all."""

import re

import pytest
import torch
from torch import Tensor

import ssl_blocks as sb
from ssl_blocks.objectives.weights import load_randsac
from ssl_blocks.objectives.weights.randsac import NAMES
from ssl_blocks.parts.position import resample_positions
from tests.pseudocode import PseudocodeRandSAC, segment_order
from tests.recipes import build, images

SQUARES = sb.SquarePartitioner(sides=(2,))


def pseudocode(positions: str = "learned", image_size: int = 16) -> PseudocodeRandSAC:
    """Every value is another, so that what lands in the wrong place is seen."""
    twin = PseudocodeRandSAC(
        image_size=image_size,
        patch_size=2,
        side=2,
        dim=16,
        num_heads=2,
        encoder_depth=3,
        decoder_depth=2,
        positions=positions,
        eps=1e-6,
    ).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return twin


def saved(twin: PseudocodeRandSAC) -> dict[str, Tensor]:
    """As the pseudocode saves it: with its mask."""
    return {**twin.state_dict(), "mask": torch.zeros(60, 60)}


def ours(**options) -> sb.SegmentPrediction:
    return build(SQUARES, positions="learned", **options).double()


@pytest.mark.parametrize("table", ["shared", "learned"])
def test_loss_and_predictions_are_those_of_the_pseudocode(table: str) -> None:
    objective, twin = ours(decoder_positions=table), pseudocode()
    load_randsac(objective, saved(twin))
    batch = images(dtype=torch.float64)
    draw = objective.draw(batch, generator=torch.Generator().manual_seed(3))
    out = objective(batch, draw)
    loss, predictions = twin(batch, segment_order(draw, side=2, grid_width=8))
    torch.testing.assert_close(out.loss, loss, rtol=0, atol=1e-10)
    torch.testing.assert_close(out.predictions, predictions, rtol=0, atol=1e-10)


def test_other_names_are_told() -> None:
    objective, twin = ours(), pseudocode()
    names = {"transformer": "net", "positions": "pos", "embed": "to_token", "skip": "mix", "head": "to_pixel"}
    state = saved(twin)
    for ours_, theirs in names.items():
        state = {re.sub(rf"^{NAMES[ours_]}(?=\.|$)", theirs, name): value for name, value in state.items()}
    with pytest.raises(ValueError, match="the checkpoint holds pos, which is none of transformer, positions, embed"):
        load_randsac(objective, {"pos": state["pos"]})
    load_randsac(objective, state, encoder_only=True, names=names)
    assert torch.equal(objective.encoder.module.pos_embed[0], twin.positions)
    with pytest.raises(
        ValueError, match=r"names=\{'skip': 'mix'\} must name transformer, positions, embed, skip, head"
    ):
        load_randsac(objective, state, names={"skip": "mix"})


def test_the_encoder_alone_leaves_the_rest() -> None:
    objective, twin = ours(), pseudocode()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    load_randsac(objective, saved(twin), encoder_only=True)
    moved = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("encoder.")}


def test_positions_of_another_grid_are_resampled() -> None:
    objective, twin = ours(decoder_positions="learned"), pseudocode(image_size=8)
    load_randsac(objective, {name: value for name, value in saved(twin).items() if name != "mask"})
    wanted = resample_positions(twin.positions[None], old=sb.Grid(4, 4), new=sb.Grid(8, 8))
    assert torch.equal(objective.encoder.module.pos_embed, wanted)
    assert torch.equal(objective.reader.decoder.positions.table, wanted[0])


def test_a_grid_that_is_no_square_is_given() -> None:
    objective, twin = ours(decoder_positions="shared"), pseudocode()
    state = saved(twin) | {"positions": torch.randn(32, 16).double()}
    with pytest.raises(ValueError, match=r"N the tokens of the grid 8x8, or a square: give grid= of the checkpoint"):
        load_randsac(objective, state)
    load_randsac(objective, state, grid=sb.Grid(4, 8))
    wanted = resample_positions(state["positions"][None], old=sb.Grid(4, 8), new=sb.Grid(8, 8))
    assert torch.equal(objective.encoder.module.pos_embed, wanted)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"skips": False}, {}, "mixes encoder layers (skip), but the objective's router learns no mixture"),
        ({"depth": 2}, {}, "the objective has no encoder.module.blocks.2"),
        ({"class_token": True}, {}, "the checkpoint lacks encoder.module.cls_token"),
        ({"patch_size": 4, "image_size": 32}, {}, "must have 3 channels of 4x4 pixels in each row"),
        ({}, {"rest": torch.zeros(2)}, "the checkpoint holds rest, which is none of transformer"),
        ({}, {"head.bias": torch.zeros(3)}, "head.bias must have shape (12,), but the checkpoint's has (3,)"),
        ({}, {"head.bias": torch.zeros(12, dtype=torch.int8)}, "head.bias must be torch.float64, but the checkpoint's"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(options, change, message) -> None:
    objective, twin = ours(**{"decoder_positions": "learned"} | options), pseudocode()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        load_randsac(objective, saved(twin) | change)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
