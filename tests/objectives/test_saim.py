"""SAIM out of parts equals SAIM written out in raster order, and has the properties that its authors claim."""

import dataclasses

import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn

import ssl_blocks as sb
from ssl_blocks.testing import LeakError, assert_no_leak
from tests.recipes import gradients, images
from tests.reference import blur_images, query_step

DEPTH = 4


def build(
    *,
    query_depth: int = DEPTH,
    share: bool = False,
    blur: tuple[int, float] | None = (9, 1.0),
    mask: sb.parts.MaskBuilder | None = None,
    image_size: int = 16,
    depth: int = DEPTH,
    dim: int = 16,
) -> sb.SegmentPrediction:
    torch.manual_seed(0)
    encoder = sb.encoders.timm_vit(
        image_size=image_size, patch_size=2, embed_dim=dim, depth=depth, num_heads=2, class_token=True
    )
    tokenizer = sb.PatchTokenizer(image_size=image_size, patch_size=2)
    target = sb.PixelTarget(tokenizer, normalize=True, blur=blur)
    own = {"grid": encoder.grid, "dim": dim, "depth": query_depth, "num_heads": 2, "norm": encoder.norm}
    objective = sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.TokenPartitioner(),
        target=target,
        reader=sb.DecoderReader(
            sb.MatchedRouter(encoder_depth=depth, decoder_depth=query_depth),
            sb.QueryStreamDecoder.sharing(encoder, depth=query_depth) if share else sb.QueryStreamDecoder(**own),
        ),
        mask=mask,
        head=Mlp(dim, 4 * dim, target.dim),
        predict_first=True,
    )
    with torch.no_grad():  # zeros and ones at the start would hide a bias or a norm that is left out
        for parameter in objective.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return objective


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def written_out(objective: sb.SegmentPrediction, batch: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions of all tokens in raster order, the loss, and the content stream's class token.

    The smaller a token's noise, the earlier it is read. Every token is in both streams.
    """
    vit, decoder = objective.encoder.module, objective.reader.decoder
    shared = decoder._shared is not None
    table = torch.cat([torch.zeros(1, vit.embed_dim, dtype=batch.dtype), decoder.positions.table.to(batch.dtype)])
    n = objective.encoder.grid.num_tokens
    every = len(vit.blocks) // decoder.depth
    predictions, class_tokens, total = [], [], 0.0
    blurred = blur_images(batch, 9, 1.0)
    for image, smooth, key in zip(batch, blurred, noise, strict=True):
        content, query = (torch.zeros(n + 1, n + 1, dtype=torch.bool) for _ in range(2))
        content[:, 0] = query[:, 0] = True  # all see the class token, and it sees itself
        for i in range(n):
            for j in range(n):
                content[1 + i, 1 + j] = key[i] >= key[j]
                query[1 + i, 1 + j] = key[i] > key[j]
        tokens = vit.patch_embed(image[None])[0] + vit.pos_embed[0, 1:]
        h, g = torch.cat([vit.cls_token[0] + vit.pos_embed[0, :1], tokens]), table
        step = 0
        for number, block in enumerate(vit.blocks, start=1):
            h = block(h[None], attn_mask=content)[0]
            if number % every == 0:
                g = query_step(vit.blocks[step] if shared else decoder.layers[step].block, g, h, query)
                step += 1
        predicted = objective.head(vit.norm(g))[1:]
        patches = objective.tokenizer(smooth[None])[0].permute(0, 2, 3, 1).flatten(1)  # (y, x, c)
        goal = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        predictions.append(predicted)
        class_tokens.append(h[0])
        total = total + (predicted - goal).square().mean()
    return torch.stack(predictions), total / len(batch), torch.stack(class_tokens)


@pytest.mark.parametrize(("share", "query_depth"), [(False, 4), (False, 1), (True, 2)])
def test_outputs_loss_and_gradients_equal_saim_written_out(share: bool, query_depth: int) -> None:
    objective = build(image_size=8, share=share, query_depth=query_depth).double()
    batch = images(2, 8, dtype=torch.float64)
    draw = objective.draw(batch, generator=seeded())
    out = objective(batch, draw)
    predictions, loss, class_tokens = written_out(objective, batch, draw.rank)
    assert out.predictions.shape == (2, 16, 12)
    assert out.is_target.all()
    torch.testing.assert_close(draw.put(out.predictions), predictions, rtol=0, atol=1e-10)
    torch.testing.assert_close(out.loss, loss, rtol=0, atol=1e-10)
    assert torch.equal(class_tokens[0], class_tokens[1])
    _, ours = gradients(objective, batch, draw)  # every parameter gets one
    objective.zero_grad()
    loss.backward()
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, ours[name], rtol=0, atol=1e-9, msg=name)


def test_a_step_with_shared_weights_runs_the_block_of_its_own_number() -> None:
    objective = build(image_size=8, share=True, query_depth=2).double()
    batch = images(1, 8, dtype=torch.float64)
    draw = objective.draw(batch, generator=seeded())
    blocks = objective.encoder.module.blocks
    objective.reader.decoder._shared = (
        sb.parts.QueryBlock(blocks[1]),
        sb.parts.QueryBlock(blocks[3]),
    )  # those just run on content
    predictions, _, _ = written_out(objective, batch, draw.rank)
    assert not torch.allclose(draw.put(objective(batch, draw).predictions), predictions, atol=1e-3)


# Properties


@pytest.mark.parametrize("share", [False, True], ids=["own weights", "shared weights"])
def test_pixels_of_a_token_move_later_predictions_only(share: bool) -> None:
    objective = build(share=share, query_depth=2)
    batch = images(2)
    draw = objective.draw(batch, generator=seeded())
    before = objective(batch, draw).predictions
    patches = objective.tokenizer(batch)
    for slot in (0, 1, 20, 62, 63):
        changed = draw.put((torch.arange(64) == slot).float().expand(2, -1))[..., None, None, None]
        after = objective(objective.tokenizer.untokenize(patches + changed * torch.randn_like(patches)), draw)
        moved = (after.predictions != before).any(-1)
        assert torch.equal(moved, (torch.arange(64) > slot).expand(2, -1))


def test_the_first_prediction_follows_from_its_position_alone() -> None:
    objective = build()
    draw = objective.draw(images(4), generator=seeded())
    first = objective(images(4), draw).predictions[:, 0]
    assert torch.equal(objective(images(4, seed=9), draw).predictions[:, 0], first)
    places = draw.order[:, 0]
    assert len(set(places.tolist())) > 1
    for a in range(4):
        for b in range(4):
            assert torch.allclose(first[a], first[b]) == bool(places[a] == places[b])


def test_the_class_token_of_the_content_is_the_same_in_all_images() -> None:
    objective = build()
    batch = images(3)
    draw = objective.draw(batch, generator=seeded())
    encoded, predicted = draw.windows(predict_first=True)
    masks = objective.mask(draw, encoded, predicted, 1, True)
    tokens = objective.encoder.embed(draw.take(objective.tokenizer(batch), encoded))
    for states in objective.encoder.encode(tokens, draw.order[:, encoded], masks.source).hidden:
        for image in (1, 2):
            torch.testing.assert_close(states[image, 0], states[0, 0])
        assert not torch.allclose(states[1, 1], states[0, 1])


@pytest.mark.parametrize("options", [{"query_depth": 1}, {"share": True}])
def test_it_leaks_nothing(options: dict) -> None:
    small = {"image_size": 8, "depth": 2, "query_depth": 2}
    assert_no_leak(build(**(small | options)), images(2, 8), generator=seeded(), draws=2)


class Altered:
    """The causal mask, wrong in one of two ways."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, serialization, encoded, predicted, num_prefix, predict_first=False):
        masks = sb.SegmentCausalMask()(serialization, encoded, predicted, num_prefix, predict_first)
        if self.wrong == "query sees itself":
            step = nn.functional.pad(serialization.step[:1, encoded], (num_prefix, 0), value=-1)
            sees = step[:, None, :] <= serialization.step[:1, predicted, None]
            return dataclasses.replace(masks, memory=sees[:, None])
        source = masks.source.clone()
        source[..., 0, :] = True
        return dataclasses.replace(masks, source=source)


@pytest.mark.parametrize("wrong", ["query sees itself", "class token sees patches"])
def test_leaks_are_found(wrong: str) -> None:
    objective = build(image_size=8, depth=2, query_depth=2, mask=Altered(wrong))
    with pytest.raises(LeakError, match="depends on position"):
        assert_no_leak(objective, images(2, 8), generator=seeded(), draws=2)


def test_the_full_length_path_equals_the_sliced_one() -> None:
    objective = build(query_depth=2).double()
    batch = images(2, dtype=torch.float64)
    draw = objective.draw(batch, generator=seeded())
    full = dataclasses.replace(draw, step_sizes=None)
    assert draw.windows(True) == (slice(0, 63), slice(0, 64))
    assert full.windows(True) == (slice(0, 64), slice(0, 64))
    a, b = objective(batch, draw), objective(batch, full)
    torch.testing.assert_close(a.predictions, b.predictions, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [False, True], ids=["own weights", "shared weights"])
def test_the_loss_falls_on_one_batch(share: bool) -> None:
    objective, batch = build(share=share, image_size=8), images(8, 8)
    draw = objective.draw(batch, generator=seeded())
    first, _ = gradients(objective, batch, draw)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    for _ in range(12):
        optimizer.zero_grad()
        loss = objective(batch, draw).loss
        loss.backward()
        optimizer.step()
        if loss < 0.9 * first:
            break
    assert loss < 0.9 * first
    assert objective.no_weight_decay() == {"encoder.module.cls_token", "encoder.module.pos_embed"}


@pytest.mark.parametrize("share", [False, True], ids=["own weights", "shared weights"])
def test_weights_are_saved_once_and_load_again(share: bool) -> None:
    objective = build(share=share)
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    assert len(state) == len({value.data_ptr() for value in objective.state_dict().values()})
    assert set(state) == {name for name, _ in objective.named_parameters()}
    again = build(share=share)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(state)
    draw = objective.draw(images(2))
    assert torch.equal(again(images(2), draw).predictions, objective(images(2), draw).predictions)


def test_bfloat16_on_cpu_is_close_to_single_precision() -> None:
    for share in (False, True):
        objective, batch = build(share=share).eval(), images(4)
        draw = objective.draw(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = objective(batch, draw)
        torch.testing.assert_close(half.loss, objective(batch, draw).loss, rtol=0.02, atol=0)
        assert half.loss.dtype == torch.float32


def test_it_reads_larger_segments_too() -> None:
    base = build(image_size=8, depth=2, query_depth=2)
    for partitioner, predict_first in (
        (sb.SquarePartitioner(sides=(2,)), False),
        (sb.BlobPartitioner(counts=(5,)), True),
    ):
        objective = sb.SegmentPrediction(
            encoder=base.encoder,
            tokenizer=base.tokenizer,
            partitioner=partitioner,
            target=base.target,
            reader=base.reader,
            predict_first=predict_first,
        )
        assert_no_leak(objective, images(2, 8), generator=seeded(), draws=2)
