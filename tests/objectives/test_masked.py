"""Masked autoencoding equals MAE written out in raster order, leaks nothing, and takes any mask of two parts."""

import pytest
import torch
from torch import Tensor

import ssl_blocks as sb
from ssl_blocks.testing import LeakError, assert_no_leak
from tests.recipes import blank, gradients, images


def build(*, class_token: bool = True, image_size: int = 16, **parts) -> sb.SegmentPrediction:
    torch.manual_seed(0)
    size = {"image_size": image_size, "patch_size": 2}
    encoder = sb.encoders.timm_vit(**size, embed_dim=16, depth=2, num_heads=2, class_token=class_token)
    tokenizer = sb.PatchTokenizer(**size)
    parts = {
        "decoder": sb.MaskTokenDecoder(grid=encoder.grid, dim=24, depth=2, num_heads=2, memory_dim=16),
        "target": sb.PixelTarget(tokenizer, normalize=True),
    } | parts
    return sb.mae(encoder=encoder, tokenizer=tokenizer, **parts)


def masked_autoencoder(mae: sb.SegmentPrediction, batch: Tensor, kept: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Predictions of all tokens in raster order, and the loss over the hidden ones: image by image, as MAE has it."""
    vit, decoder, total, count, predictions = mae.encoder.module, mae.reader.decoder, 0.0, 0, []
    for image, keep in zip(batch, kept, strict=True):
        tokens = vit.patch_embed(image[None])[0] + vit.pos_embed[0, -64:]
        prefix = [] if vit.cls_token is None else [vit.cls_token[0, 0] + vit.pos_embed[0, 0]]
        x = torch.stack([*prefix, *(tokens[i] for i in keep)])[None]
        for block in vit.blocks:
            x = block(x)
        latent = decoder.memory_proj(vit.norm(x))[0]
        row = {i: latent[len(prefix) + place] for place, i in enumerate(keep)}
        full = [row.get(i, decoder.mask_token[0, 0]) + decoder.positions.table[i] for i in range(64)]
        x = torch.stack([*latent[: len(prefix)], *full])[None]
        for block in decoder.blocks:
            x = block(x)
        predicted = mae.head(decoder.norm(x))[0, len(prefix) :]
        predictions.append(predicted)
        target = mae.target(image[None])[0]
        for i in set(range(64)) - set(keep):
            total = total + (predicted[i] - target[i]).square().mean()
            count += 1
    return torch.stack(predictions), total / count


@pytest.mark.parametrize("class_token", [True, False])
def test_it_equals_mae_written_out(class_token: bool) -> None:
    mae, batch = build(class_token=class_token).eval(), images(3)
    draw = mae.draw(batch, generator=torch.Generator().manual_seed(0))
    kept = draw.order[:, :16].tolist()
    out = mae(batch, draw)
    predictions, loss = masked_autoencoder(mae, batch, kept)
    torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=1e-6)
    expected = torch.stack([rows[index] for rows, index in zip(predictions, out.index, strict=True)])
    torch.testing.assert_close(out.predictions, expected, rtol=1e-4, atol=1e-5)
    assert out.predictions.shape == (3, 48, 12)


def test_hidden_patches_have_no_say_and_visible_ones_have() -> None:
    for class_token in (True, False):
        mae = build(class_token=class_token, image_size=8)
        assert_no_leak(mae, images(2, 8), generator=torch.Generator().manual_seed(0), draws=2)


class Peeking(sb.SegmentPrediction):
    """Wrong: all patches are encoded, and the mean of them joins the predictions."""

    def forward(self, batch, draw=None):
        out = super().forward(batch, draw)
        seen = self.encoder.encode(self.encoder.embed(batch), torch.arange(64).expand(len(batch), -1)).final
        predictions = out.predictions + seen.mean((1, 2))[:, None, None] * torch.linspace(0, 1, 12)
        return sb.ObjectiveOutput(**{**vars(out), "predictions": predictions})


def test_a_leak_is_found() -> None:
    honest = build()
    peeking = Peeking(
        encoder=honest.encoder,
        tokenizer=honest.tokenizer,
        partitioner=honest.partitioner,
        serializer=honest.serializer,
        mask=honest.mask,
        reader=honest.reader,
        target=honest.target,
    )
    with pytest.raises(LeakError):
        assert_no_leak(peeking, images(2))


def test_the_set_that_is_kept_matters_not_its_order() -> None:
    mae, batch = build().eval(), images(2)
    draw = mae.draw(batch)
    shuffled = draw.order.clone()
    shuffled[:, :16] = draw.order[:, :16].flip(1)
    again = sb.Serialization(shuffled, draw.step, draw.step_sizes)
    torch.testing.assert_close(mae(batch, again).predictions, mae(batch, draw).predictions, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient_and_the_loss_falls() -> None:
    mae, batch = build(), images(8)
    draw = mae.draw(batch, generator=torch.Generator().manual_seed(0))
    first, _ = gradients(mae, batch, draw)
    optimizer = torch.optim.AdamW(mae.parameters(), lr=1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        loss = mae(batch, draw).loss
        loss.backward()
        optimizer.step()
        if loss < 0.85 * first:
            break
    assert loss < 0.85 * first
    assert mae.no_weight_decay() == {
        "encoder.module.cls_token",
        "encoder.module.pos_embed",
        "reader.decoder.mask_token",
    }


def test_a_cross_attending_decoder_fits_too() -> None:
    mae = build(
        image_size=8,
        decoder=sb.SegmentDecoder(grid=sb.Grid(4, 4), dim=24, depth=2, num_heads=2, memory_dim=16),
        router=sb.LearnedSkipRouter(encoder_depth=2, decoder_depth=2),
    )
    assert_no_leak(mae, images(2, 8), draws=2)


@pytest.mark.parametrize("partitioner", [sb.BlockSubsetPartitioner(hidden=0.5), sb.GridSubsetPartitioner(period=2)])
def test_any_mask_of_two_parts_fits(partitioner: sb.parts.SegmentPartitioner) -> None:
    assert_no_leak(build(partitioner=partitioner, image_size=8), images(2, 8), draws=2)


@pytest.mark.parametrize(
    ("partitioner", "message"),
    [
        (sb.TokenPartitioner(), "lets all tokens see each other: it fits two steps, given and predicted"),
        (sb.BlobPartitioner(counts=(2,)), "lets all tokens see each other: it fits two steps, given and predicted"),
        (sb.SubsetPartitioner(hidden=0.99), "must leave every subset a token"),
    ],
)
def test_other_masks_are_refused(partitioner: sb.parts.SegmentPartitioner, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(partitioner=partitioner)(images(2))


def test_a_mask_token_decoder_is_refused_where_it_would_leak() -> None:
    mae = build()
    with pytest.raises(ValueError, match="takes one memory, got 2"):
        build(router=sb.LastLayerRouter(decoder_depth=2))(images(2))
    autoregression = sb.SegmentPrediction(
        encoder=mae.encoder,
        tokenizer=mae.tokenizer,
        partitioner=sb.SquarePartitioner(sides=(4,)),
        target=mae.target,
        reader=sb.DecoderReader(sb.LastLayerRouter(decoder_depth=1), mae.reader.decoder),
    )
    with pytest.raises(ValueError, match="lets all tokens see each other: it fits two steps"):
        autoregression(images(2))
    for wrong, message in (({"num_heads": 5}, "num_heads=5 must divide dim=24"), ({"depth": 0}, "depth=0")):
        with pytest.raises(ValueError, match=message):
            sb.MaskTokenDecoder(**{"grid": sb.Grid(8, 8), "dim": 24, "depth": 1, "num_heads": 2} | wrong)


def test_bfloat16_on_cpu_is_close_to_single_precision() -> None:
    mae, batch = build().eval(), images(4)
    draw = mae.draw(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = mae(batch, draw)
    torch.testing.assert_close(half.loss, mae(batch, draw).loss, rtol=0.02, atol=0)
    assert half.loss.dtype == torch.float32


def test_blocks_hide_the_same_number_everywhere_in_rectangles() -> None:
    grid, ratio = sb.Grid(14, 14), 0.4
    segments = sb.BlockSubsetPartitioner(hidden=ratio)(blank(200), grid, generator=torch.Generator().manual_seed(0))
    hidden = segments.levels[0].view(-1, 14, 14)
    kept = int(196 * (1 - ratio))
    assert segments.step_sizes == (kept, 196 - kept)
    assert (hidden.sum((1, 2)) == 196 - kept).all()
    scattered = sb.SubsetPartitioner(hidden=0.4)(blank(200), grid, generator=torch.Generator().manual_seed(0))

    def alike(ids: Tensor) -> float:
        return (ids[:, 1:] == ids[:, :-1]).float().mean().item()

    assert alike(hidden) > 0.85  # neighbours are mostly hidden or visible together
    assert alike(scattered.levels[0].view(-1, 14, 14)) < 0.6
    share = hidden.float().mean(0)
    assert share.min() > 0.01  # every place is hidden now and then
    assert not torch.equal(hidden[0], hidden[1])


def test_a_grid_keeps_one_token_of_every_square() -> None:
    segments = sb.GridSubsetPartitioner(period=3)(blank(2), sb.Grid(6, 9))
    ids = segments.levels[0].view(2, 6, 9)
    expected = torch.tensor([[[0 if y % 3 == 0 and x % 3 == 0 else 1 for x in range(9)] for y in range(6)]] * 2)
    assert torch.equal(ids, expected)
    assert segments.step_sizes == (6, 48)
    with pytest.raises(ValueError, match="period=3 must divide the grid 8x8"):
        sb.GridSubsetPartitioner(period=3)(blank(1), sb.Grid(8, 8))
    with pytest.raises(ValueError, match="period=1 must be at least 2"):
        sb.GridSubsetPartitioner(period=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0.0}, "hidden=0.0 must lie between 0 and 1"),
        ({"hidden": 1.0}, "hidden=1.0 must lie between 0 and 1"),
        ({"hidden": 0.5, "area": (0.5, 0.1)}, r"area=\(0.5, 0.1\)"),
        ({"hidden": 0.5, "aspect": 0.0}, "aspect=0.0"),
        ({"hidden": 0.99}, "hidden=0.99 keeps 0 of the 16 tokens"),
    ],
)
def test_blocks_refuse_what_hides_nothing_or_all(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sb.BlockSubsetPartitioner(**options)(blank(1), sb.Grid(4, 4))
