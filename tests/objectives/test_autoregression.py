"""RandSAC and its relatives: every ablation of the paper runs, and keeps the properties of an autoregression."""

import dataclasses

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.testing import assert_no_leak
from tests.recipes import blank, build, gradients, images

SQUARES, BLOBS, TOKENS = sb.SquarePartitioner, sb.BlobPartitioner, sb.TokenPartitioner


def shuffled(base):
    return sb.ShuffledPartitioner(base=base)


# every row of the paper's ablations, by the name that it has there
ABLATIONS = {
    "pixel-raster": (TOKENS(), {"image_size": 8, "patch_size": 1, "serializer": sb.OrderedSerializer()}),
    "patch-raster": (TOKENS(), {"serializer": sb.OrderedSerializer()}),
    "patch-random": (TOKENS(), {}),
    **{f"squares M={side}": (SQUARES(sides=(side,)), {}) for side in (1, 2, 4)},
    **{f"blobs K={count}": (BLOBS(counts=(count,)), {}) for count in (3, 7, 11)},
    "shuffled squares": (shuffled(SQUARES(sides=(2,))), {}),
    "shuffled blobs": (shuffled(BLOBS(counts=(7,))), {}),
    "squares 16->4": (SQUARES(sides=(2, 4)), {}),
    **{f"blobs {fine}->{coarse}": (BLOBS(counts=(fine, coarse)), {}) for fine, coarse in ((7, 3), (16, 4), (11, 5))},
    "normalised target": (SQUARES(sides=(2,)), {"normalize": True}),
    "normalised target, blobs": (BLOBS(counts=(7,)), {"normalize": True}),
    "plain decoder": (SQUARES(sides=(2,)), {"skips": False}),
    "plain decoder, blobs": (BLOBS(counts=(7,)), {"skips": False}),
    "class token": (SQUARES(sides=(2,)), {"class_token": True}),
    "class token, blobs": (BLOBS(counts=(7, 3)), {"class_token": True}),
    "class and register tokens": (SQUARES(sides=(4,)), {"class_token": True, "reg_tokens": 3}),
    "registers alone, blobs": (BLOBS(counts=(5,)), {"reg_tokens": 2}),
    "first segment too": (SQUARES(sides=(4,)), {"class_token": True, "predict_first": True}),
    "first segment too, blobs": (BLOBS(counts=(5,)), {"class_token": True, "predict_first": True}),
    "learned positions": (SQUARES(sides=(2,)), {"positions": "learned", "decoder_positions": "learned"}),
    "shared positions": (
        BLOBS(counts=(7,)),
        {"positions": "learned", "decoder_positions": "shared", "class_token": True},
    ),
    "narrow decoder": (SQUARES(sides=(2,)), {"decoder_dim": 8}),
    "cropped patches": (SQUARES(sides=(2,)), {"image_size": 24, "patch_size": 3, "crop": 1}),
    "one channel": (SQUARES(sides=(4,)), {"channels": 1}),
}
# those that tests/testing/test_leaks.py does not look at, on as few tokens as fit
LEAKS = {"pixel-raster": 4, "squares 16->4": 8}
LEAKS |= dict.fromkeys(("patch-random", "shuffled squares", "shared positions"), 8)


def make(name, **more):
    partitioner, options = ABLATIONS[name]
    return build(partitioner, **{"depth": 2, **options, **more})


def images_for(objective, batch=3, **options):
    return images(batch, objective.tokenizer.image_size[0], channels=objective.tokenizer.channels, **options)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["class token", "blobs K=7", "first segment too, blobs"])
def objective(request):
    return make(request.param)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_predicts_pixels_at_its_own_index_and_takes_an_optimizer_step(name):
    objective = make(name)
    batch = images_for(objective, 2)
    draw = objective.draw(batch, generator=seeded())
    out = objective(batch, draw)
    expected = sb.values.gather_tokens(objective.target(batch), out.index)
    torch.testing.assert_close(out.targets, expected)
    error = (out.predictions - expected).square().mean(-1)[out.is_target].mean()
    torch.testing.assert_close(out.loss, error)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    before = {key: value.clone() for key, value in objective.named_parameters()}
    loss, _ = gradients(objective, batch, draw)
    assert loss.isfinite()
    optimizer.step()
    for key, value in objective.named_parameters():
        assert value.isfinite().all(), key
        assert torch.equal(value, before[key]) != value.requires_grad, key


@pytest.mark.parametrize("name", LEAKS)
def test_nothing_leaks(name):
    objective = make(name, image_size=LEAKS[name], decoder_depth=1)
    assert_no_leak(objective, images_for(objective, 2), generator=seeded(), draws=2)


# The properties of an autoregression


def test_new_pixels_change_all_later_predictions_and_no_earlier_one(objective):
    batch = images()
    draw = objective.draw(batch, generator=seeded())
    patches = objective.tokenizer(batch)
    before = objective(batch, draw)
    for step in range(int(draw.step.max()) + 1):
        changed = draw.put((draw.step == step)[..., None].float())[..., None, None]
        after = objective(objective.tokenizer.untokenize(patches + changed * torch.randn_like(patches)), draw)
        moved = (after.predictions != before.predictions).any(-1)
        exists = (draw.step == step).any(1)[:, None]
        torch.testing.assert_close(moved & before.is_target, before.is_target & exists & (before.step > step))


def test_exchanging_later_segments_changes_no_earlier_prediction(objective):
    batch = images(dtype=torch.float64)
    objective.double()
    draw = dataclasses.replace(objective.draw(batch, generator=seeded()), step_sizes=None)
    last = draw.step.amax(1, keepdim=True)
    # the last segment changes places with the one before, whatever their sizes
    key = draw.step + 2 * (draw.step == last - 1).long()
    key, slots = key.sort(dim=1, stable=True)
    step = torch.where(key == last, last - 1, torch.where(key > last, last, key))
    exchanged = sb.Serialization(order=draw.order.gather(1, slots), step=step)
    early = (draw.step < last - 1)[..., None]
    a, b = objective(batch, draw).predictions, objective(batch, exchanged).predictions
    torch.testing.assert_close(a * early, b * early, rtol=0, atol=1e-12)
    assert not torch.allclose(a, b)


def test_merging_later_segments_changes_no_earlier_prediction(objective):
    batch = images(dtype=torch.float64)
    objective.double()
    draw = dataclasses.replace(objective.draw(batch, generator=seeded()), step_sizes=None)
    merged = dataclasses.replace(draw, step=draw.step.clamp(max=2))
    early = (draw.step < 2)[..., None]
    a, b = objective(batch, draw).predictions, objective(batch, merged).predictions
    torch.testing.assert_close(a * early, b * early, rtol=0, atol=1e-12)
    assert not torch.allclose(a, b)


def test_order_inside_a_segment_changes_nothing(objective):
    batch = images(dtype=torch.float64)
    objective.double()
    draw = objective.draw(batch, generator=seeded())
    _, slots = (draw.step + torch.rand(draw.step.shape)).sort(dim=1)
    reordered = dataclasses.replace(draw, order=draw.order.gather(1, slots))
    assert not torch.equal(reordered.order, draw.order)
    outs = [(d, objective(batch, d)) for d in (draw, reordered)]
    (a, b) = (
        d.put(torch.where(o.is_target[..., None], o.predictions, 0.0), d.windows(objective.predict_first)[1])
        for d, o in outs
    )
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(outs[0][1].loss, outs[1][1].loss, rtol=0, atol=1e-12)


def one_image(draw, image):
    return dataclasses.replace(draw, order=draw.order[image : image + 1], step=draw.step[image : image + 1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-5), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"])
def test_an_image_gets_the_same_predictions_alone_and_in_its_batch(objective, dtype, tolerance):
    batch = images(4)
    draw = objective.draw(batch, generator=seeded())
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        together = objective(batch, draw)
        for i in range(4):
            alone = objective(batch[i : i + 1], one_image(draw, i))
            torch.testing.assert_close(
                alone.predictions.float(), together.predictions[i : i + 1].float(), rtol=0, atol=tolerance
            )
            assert torch.equal(alone.is_target, together.is_target[i : i + 1])


def test_the_loss_of_a_batch_weighs_images_by_their_predicted_tokens():
    objective = make("blobs K=3")
    batch = images(4)
    draw = objective.draw(batch, generator=seeded())
    alone = [objective(batch[i : i + 1], one_image(draw, i)) for i in range(4)]
    counts = torch.stack([out.is_target.sum() for out in alone])
    assert len(set(counts.tolist())) > 1
    mean = (torch.stack([out.loss for out in alone]) * counts).sum() / counts.sum()
    torch.testing.assert_close(objective(batch, draw).loss, mean)


def test_all_tokens_but_the_first_segments_are_predicted_once(objective):
    batch = images()
    draw = objective.draw(batch, generator=seeded())
    out = objective(batch, draw)
    for image in range(3):
        wanted = draw.order[image] if objective.predict_first else draw.order[image][draw.step[image] > 0]
        assert sorted(out.index[image][out.is_target[image]].tolist()) == sorted(wanted.tolist())


def test_pixels_of_the_last_segment_get_no_gradient_through_the_encoder(objective):
    batch = images().requires_grad_()
    draw = objective.draw(batch, generator=seeded())
    out = objective(batch, draw)
    (gradient,) = torch.autograd.grad((out.predictions * out.is_target[..., None]).square().sum(), batch)
    felt = draw.take(objective.tokenizer(gradient).abs().flatten(2).sum(-1))
    torch.testing.assert_close(felt > 0, draw.step < draw.step.amax(1, keepdim=True))


@pytest.mark.parametrize("name", ["squares M=2", "squares 16->4", "patch-random"])
def test_images_get_orders_of_their_own_and_every_segment_comes_first_equally_often(name):
    objective = make(name)
    batch = torch.zeros(3200, 3, 16, 16)
    draw = objective.draw(batch, generator=seeded())
    assert len({tuple(row) for row in draw.order[:100].tolist()}) == 100
    ids = objective.partitioner(blank(3200), objective.tokenizer.grid).levels[0]
    count = torch.bincount(draw.take(ids)[:, 0]).double()
    expected = 3200 / len(count)
    degrees = len(count) - 1
    chi_square = float(((count - expected) ** 2 / expected).sum())
    assert len(count) == ids.max() + 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


def test_images_get_blobs_of_their_own():
    objective = make("blobs K=7")
    draw = objective.draw(torch.zeros(20, 3, 16, 16), generator=seeded())
    assert len({tuple(row) for row in draw.put(draw.step).tolist()}) == 20


# One computation, two ways


@pytest.mark.parametrize(
    "name", ["squares M=2", "squares 16->4", "class token", "plain decoder", "patch-random", "first segment too"]
)
def test_the_full_length_path_equals_the_sliced_one(name):
    objective = make(name).double()
    batch = images(dtype=torch.float64)
    draw = objective.draw(batch, generator=seeded())
    full = dataclasses.replace(draw, step_sizes=None)
    assert draw.windows(objective.predict_first) != full.windows(objective.predict_first)
    (loss, ours), (full_loss, theirs) = gradients(objective, batch, draw), gradients(objective, batch, full)
    torch.testing.assert_close(loss, full_loss, rtol=0, atol=1e-12)
    for key, value in ours.items():
        # a class token starts near 0, where layer norm makes its gradient large, and rounding with it
        size = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=1e-12 * size, msg=key)


# Odd partitions


def hand_made(*rows):
    """A draw over a 4x4 grid from one row of segment ids per image."""
    ids = torch.tensor(rows)
    return sb.OrderedSerializer()(sb.Segments(levels=(ids,), counts=(int(ids.max()) + 1,)))


ONE_BLOB = [0] * 16
DISCONNECTED = [0, 1, 1, 0] * 4
WITH_GAPS = [0] * 6 + [3] * 5 + [7] * 5  # segments 1, 2, 4, 5 and 6 are empty
LONE_TOKENS = [0] * 14 + [1, 2]


@pytest.mark.parametrize("class_token", [False, True])
def test_empty_disconnected_and_single_blobs_in_one_batch(class_token):
    objective = build(BLOBS(counts=(8,)), image_size=8, class_token=class_token)
    batch = images(4, 8)
    draw = hand_made(ONE_BLOB, DISCONNECTED, WITH_GAPS, LONE_TOKENS)
    out = objective(batch, draw)
    assert out.predictions.isfinite().all()
    assert out.is_target.sum(1).tolist() == [0, 8, 10, 2]
    loss, found = gradients(objective, batch, draw)
    assert all(value.isfinite().all() for value in found.values())
    rest = objective(batch[1:], dataclasses.replace(draw, order=draw.order[1:], step=draw.step[1:]))
    torch.testing.assert_close(loss, rest.loss.detach())  # the image of one blob counts nothing


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_a_batch_of_single_blobs_has_loss_0_and_gradients_0(autocast):
    objective = build(BLOBS(counts=(8,)), image_size=8)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, found = gradients(objective, images(2, 8), hand_made(ONE_BLOB, ONE_BLOB))
    assert loss == 0
    assert all(torch.count_nonzero(value) == 0 for value in found.values())


def test_more_blobs_than_tokens_leave_some_empty():
    objective = build(BLOBS(counts=(40,)), image_size=8)
    batch = images(3, 8)
    draw = objective.draw(batch, generator=seeded())
    assert draw.step.max() < 16
    loss, found = gradients(objective, batch, draw)
    assert loss.isfinite()
    assert all(value.isfinite().all() for value in found.values())


def test_the_paper_counts_of_blobs_draw_empty_segments_now_and_then():
    objective = make("blobs K=11")
    draw = objective.draw(torch.zeros(200, 3, 16, 16), generator=seeded())
    segments = draw.step.amax(1) + 1
    assert segments.min() < 11
    assert segments.max() == 11


def test_rectangular_grids_work():
    size = {"image_size": (4, 24), "patch_size": (1, 4)}
    tokenizer = sb.PatchTokenizer(**size)
    encoder = sb.encoders.timm_vit(**size, depth=2, embed_dim=16, num_heads=2, class_token=True)
    objective = sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=SQUARES(sides=(2,)),
        target=sb.PixelTarget(tokenizer),
        reader=sb.DecoderReader(
            sb.LearnedSkipRouter(encoder_depth=2, decoder_depth=1),
            sb.SegmentDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2),
        ),
    )
    assert_no_leak(objective, torch.randn(2, 3, 4, 24), generator=seeded(), draws=2)


# Randomness, and what runs where


def test_a_given_draw_makes_forward_deterministic(objective):
    batch = images()
    draw = objective.draw(batch)
    a, b = objective(batch, draw), objective(batch, draw)
    assert torch.equal(a.predictions, b.predictions)
    assert a.draw is draw


def test_forward_draws_for_itself_and_says_what(objective):
    batch = images()
    out = objective(batch)
    assert torch.equal(objective(batch, out.draw).predictions, out.predictions)
    assert not torch.equal(objective(batch).draw.order, out.draw.order)


def test_one_seed_is_one_draw(objective):
    batch = images()
    a, b, other = (objective.draw(batch, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a.order, b.order)
    assert torch.equal(a.step, b.step)
    assert not torch.equal(a.order, other.order)


def test_a_draw_leaves_the_global_generator_alone(objective):
    state = torch.get_rng_state()
    objective.draw(images(), generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_on_another_device_is_refused(objective):
    with pytest.raises(ValueError, match="generator is on cpu, but the draw is made on meta"):
        objective.draw(images(device="meta"), generator=seeded())


def test_forward_never_waits_for_data(objective):
    batch = images()
    draw = objective.draw(batch)
    on_meta = dataclasses.replace(draw, order=draw.order.to("meta"), step=draw.step.to("meta"))
    # on the meta device there is no data: whatever looks at some, raises
    out = objective.to("meta")(batch.to("meta"), on_meta)
    out.loss.backward()
    assert out.loss.device.type == "meta"


@pytest.mark.parametrize("name", ["blobs K=7", "normalised target"])
def test_the_loss_falls_on_one_batch(name):
    objective = make(name)
    batch = images_for(objective, 4)
    draw = objective.draw(batch, generator=seeded())
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    losses = []
    while len(losses) < 12 and not (losses and losses[-1] < 0.9 * losses[0]):
        loss, _ = gradients(objective, batch, draw)
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]


def test_under_autocast_the_loss_stays_in_single_precision(objective):
    batch = images()
    draw = objective.draw(batch)
    with torch.autocast("cpu", torch.bfloat16):
        out = objective(batch, draw)
    assert out.loss.dtype == torch.float32
    assert out.predictions.dtype == torch.bfloat16
    torch.testing.assert_close(out.loss, objective(batch, draw).loss, rtol=2e-2, atol=2e-2)


# Life cycle


def test_it_is_an_objective_and_its_hooks_exist(objective):
    assert isinstance(objective, sb.Objective)
    assert objective.before_step(sb.Progress(step=0, epoch=0, num_steps=1, steps_per_epoch=1)) is None
    assert objective.after_step() is None


def test_the_encoder_is_exported_as_it_stands(objective):
    assert objective.export_encoder() is objective.encoder
    assert isinstance(objective.export_encoder(), sb.encoders.TokenEncoder)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"encoder.module.pos_embed"}),
        ({"class_token": True}, {"encoder.module.pos_embed", "encoder.module.cls_token"}),
        ({"reg_tokens": 1}, {"encoder.module.pos_embed", "encoder.module.reg_token"}),
        (
            {"positions": "learned", "decoder_positions": "learned"},
            {"encoder.module.pos_embed", "reader.decoder.positions.table"},
        ),
        ({"positions": "learned", "decoder_positions": "shared"}, {"encoder.module.pos_embed"}),
    ],
)
def test_positions_and_prefix_tokens_are_spared_weight_decay(options, names):
    objective = build(SQUARES(sides=(2,)), **options)
    assert objective.no_weight_decay() == names
    assert names <= set(dict(objective.named_parameters()))


def test_a_shared_table_is_one_parameter():
    objective = make("shared positions")
    assert objective.reader.decoder.positions.table is objective.encoder.module.pos_embed
    assert sum(p is objective.encoder.module.pos_embed for p in objective.parameters()) == 1


def test_state_loads_strictly_into_a_twin_with_other_squares():
    ours, twin = make("squares M=2"), build(SQUARES(sides=(4,)), depth=2, seed=1)
    twin.load_state_dict(ours.state_dict(), strict=True)
    batch = images()
    draw = ours.draw(batch)
    assert torch.equal(ours(batch, draw).predictions, twin(batch, draw).predictions)


def test_a_head_of_ones_own_is_used():
    head = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 12))
    objective = build(SQUARES(sides=(2,)), head=head)
    _, found = gradients(objective, images())
    assert any(name.startswith("head.2") for name in found)


# Errors


def test_sides_that_do_not_divide_the_grid_are_named():
    with pytest.raises(ValueError, match=r"sides=\(3,\) must divide the grid 8x8 \(height 8 is not a multiple of 3\)"):
        build(SQUARES(sides=(3,)))(images())


@pytest.mark.parametrize("partitioner", [BLOBS(counts=(1,)), SQUARES(sides=(8,))], ids=["blob", "square"])
def test_one_segment_by_construction_is_refused(partitioner):
    with pytest.raises(ValueError, match="makes one segment of the 8x8 grid: the first segment is context only"):
        build(partitioner)(images())


def test_one_segment_is_predicted_from_prefix_tokens():
    objective = build(SQUARES(sides=(8,)), class_token=True, predict_first=True)
    assert objective(images()).is_target.all()


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"image_size": 16, "patch_size": 4}, r"tokenizer has patch \(4, 4\), but the encoder was built for \(2, 2\)"),
        ({"image_size": 16, "patch_size": 2, "channels": 1}, "tokenizer has channels 1, but .* built for 3"),
        ({"image_size": 32, "patch_size": 2}, "tokenizer has grid 16x16, but the encoder was built for 8x8"),
        ({"image_size": 16, "patch_size": 2, "crop": 1}, r"tokenizer has patch \(1, 1\), but .* built for \(2, 2\)"),
    ],
    ids=["patch", "channels", "grid", "crop"],
)
def test_a_tokenizer_that_is_not_the_encoders_is_refused(tokenizer, message):
    encoder = sb.encoders.timm_vit(image_size=16, patch_size=2, depth=1, embed_dim=16, num_heads=2)
    tokenizer = sb.PatchTokenizer(**tokenizer)
    with pytest.raises(ValueError, match=message):
        sb.SegmentPrediction(
            encoder=encoder,
            tokenizer=tokenizer,
            partitioner=SQUARES(sides=(2,)),
            target=sb.PixelTarget(tokenizer),
            reader=sb.DecoderReader(
                sb.LastLayerRouter(decoder_depth=1), sb.SegmentDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2)
            ),
        )


def test_predicting_the_first_segment_needs_a_prefix_token():
    with pytest.raises(ValueError, match="predict_first=True needs an encoder with a prefix token"):
        build(SQUARES(sides=(2,)), predict_first=True)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 16, 16), (2, 3, 16, 32)])
def test_images_of_another_shape_are_refused(objective, shape):
    with pytest.raises(ValueError, match=r"do not fit this tokenizer: expected \[B, 3, 16, 16\]"):
        objective(torch.zeros(shape))


def test_router_and_decoder_of_different_depth_are_refused():
    objective = make("squares M=2")
    objective.reader.router = sb.LearnedSkipRouter(encoder_depth=2, decoder_depth=3)
    with pytest.raises(ValueError, match="depth=2 needs one memory per layer, got 3"):
        objective(images())


def test_router_and_encoder_of_different_depth_are_refused():
    objective = make("squares M=2")
    objective.reader.router = sb.LearnedSkipRouter(encoder_depth=5, decoder_depth=2)
    with pytest.raises(ValueError, match="encoder_depth=5 must be the encoder's depth, 2"):
        objective(images())
