"""SegmentPrediction is the paper's pseudocode, number for number."""

import pytest
import torch

import ssl_blocks as sb
from tests.pseudocode import PseudocodeRandSAC, segment_order, translate
from tests.recipes import blank, build, gradients, images

TABLES = {"fixed": ("sincos", "sincos"), "learned": ("learned", "shared")}


def size(parameters):
    return sum(p.numel() for p in parameters)


def twins(side: int, *, normalize: bool = False, positions: str = "fixed"):
    encoder_positions, decoder_positions = TABLES[positions]
    objective = build(
        sb.SquarePartitioner(sides=(side,)),
        normalize=normalize,
        positions=encoder_positions,
        decoder_positions=decoder_positions,
    ).double()
    with torch.no_grad():  # zeros and ones at the start would hide a bias or a norm that is left out
        for parameter in objective.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    twin = PseudocodeRandSAC(
        image_size=16,
        patch_size=2,
        side=side,
        dim=16,
        num_heads=2,
        encoder_depth=3,
        decoder_depth=2,
        positions=positions,
        normalize=normalize,
        eps=1e-6,  # timm's
    ).double()
    twin.load_from(objective)
    return objective, twin


@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalised"])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_loss_predictions_and_all_gradients_agree(side, normalize, positions):
    objective, twin = twins(side, normalize=normalize, positions=positions)
    batch = images(dtype=torch.float64)
    draw = objective.draw(batch, generator=torch.Generator().manual_seed(3))
    order = segment_order(draw, side=side, grid_width=8)
    out = objective(batch, draw)
    loss, predictions = twin(batch, order)
    torch.testing.assert_close(out.loss, loss, rtol=0, atol=1e-10)
    torch.testing.assert_close(out.predictions, predictions, rtol=0, atol=1e-10)

    gradients(objective, batch, draw)
    loss.backward()
    ours = translate(objective, lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
    trained = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    assert size(trained.values()) == size(p for p in objective.parameters() if p.requires_grad)  # none is left out
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, ours[name], rtol=0, atol=1e-10, msg=name)


def test_the_learned_table_gets_gradients_from_both_sides():
    objective, _ = twins(2, positions="learned")
    batch = images(dtype=torch.float64)
    draw = objective.draw(batch)
    _, full = gradients(objective, batch, draw)
    handle = objective.reader.decoder.positions.register_forward_hook(lambda module, args, out: out.detach())
    _, encoder_only = gradients(objective, batch, draw)
    handle.remove()
    shared = full["encoder.module.pos_embed"]
    assert encoder_only["encoder.module.pos_embed"].abs().max() > 0
    assert (shared - encoder_only["encoder.module.pos_embed"]).abs().max() > 1e-6


def test_the_twin_reads_segments_in_the_order_of_the_draw():
    objective, _ = twins(4)
    draw = objective.draw(images(2))
    ids = sb.SquarePartitioner(sides=(4,))(blank(2), sb.Grid(8, 8)).levels[0]
    torch.testing.assert_close(segment_order(draw, side=4, grid_width=8), draw.take(ids)[:, ::16])
    assert not torch.equal(draw.order[0], draw.order[1])
