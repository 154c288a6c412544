"""What holds for every family alike: the public check, objectives without a branch, attention in bfloat16."""

import re

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.parts import attention
from ssl_blocks.testing import assert_no_leak
from tests.encoders.families import FAMILIES, TABLE, causal, family, images_for, raster, shaken

pytestmark = pytest.mark.process  # takes long

OBJECTIVES = [  # of every adapter, and of every kind of decoder
    *(("timm ViT", "autoregression"), ("timm rope-vit, mixed", "autoregression"), ("torchvision ViT", "masked")),
    *(("transformers DINOv3", "autoregression"), ("nn.TransformerEncoder, norm last", "query stream")),
    ("GridTransformer, volumes", "autoregression"),
]
PRECISIONS = [*((name, False) for name in FAMILIES), *((name, True) for name, _ in OBJECTIVES)]


def objective(encoder, kind):
    """The same lines for every family."""
    size = tuple(n * p for n, p in zip(encoder.grid.sizes, encoder.patch, strict=True))
    tokenizer = sb.PatchTokenizer(image_size=size, patch_size=encoder.patch, channels=encoder.channels)
    target = sb.PixelTarget(tokenizer)
    dim = 24 if encoder.grid.ndim == 3 else 16  # an equal share for each axis
    size = {"grid": encoder.grid, "dim": dim, "depth": 1, "num_heads": 2, "memory_dim": encoder.dim}
    if kind == "masked":
        return sb.mae(encoder=encoder, tokenizer=tokenizer, target=target, decoder=sb.MaskTokenDecoder(**size))
    if kind == "query stream":
        own = {"grid": encoder.grid, "dim": encoder.dim, "depth": 1, "num_heads": 2, "norm": encoder.norm}
        return sb.SegmentPrediction(
            encoder=encoder,
            tokenizer=tokenizer,
            partitioner=sb.TokenPartitioner(),
            target=target,
            reader=sb.DecoderReader(
                sb.MatchedRouter(encoder_depth=encoder.depth, decoder_depth=1), sb.QueryStreamDecoder(**own)
            ),
            predict_first=encoder.num_prefix > 0,
        )
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SquarePartitioner(sides=(2,)),
        target=target,
        reader=sb.DecoderReader(
            sb.LearnedSkipRouter(encoder_depth=encoder.depth, decoder_depth=1), sb.SegmentDecoder(**size)
        ),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_public_check_passes_as_the_table_says(name):
    report = TABLE.checked(name)
    assert set(report.passed) == {"members", *TABLE.CHECKS} - {"compilation"}
    assert dict(report.not_applicable) == {"compilation": "not asked for"}
    row = TABLE.row(name, {*report.passed, "compilation"})
    assert "| " + " | ".join(row) + " |\n" in TABLE.PAGE.read_text(), "run python -m docs.make_encoder_table"


def test_the_table_has_a_row_for_each_family():
    table = TABLE.PAGE.read_text().split(TABLE.START)[1].split(TABLE.END)[0].split("\n| ")[3:]
    assert [row.partition(" |")[0] for row in table] == list(FAMILIES)


def test_each_kind_of_block_compiles_in_one_graph_in_bfloat16_and_what_does_not_is_found(compiled):
    found = compiled["encoders"]
    adapters = {type(FAMILIES[name]()) for name in FAMILIES}
    assert {type(FAMILIES[name]()) for name, _ in OBJECTIVES} == adapters
    assert {type(FAMILIES[name]()) for name in found["plain"]} == adapters
    assert max(found["plain"].values()) < 1e-5
    assert found["recomputed"] < 0.1  # inside a checkpoint, attention stays with torch
    assert found["breaking"].startswith("embed and encode do not compile in one graph: ")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_input_is_what_the_models_own_first_block_gets(name):
    encoder, found = family(name), []
    first = next(part for path, part in encoder.module.named_modules() if re.search(r"(layers?|blocks)\.\w*0$", path))
    hook = first.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    images = images_for(encoder)
    encoder.native(images)
    hook.remove()
    expected = found[0] if len(found[0]) == len(images) else found[0].transpose(0, 1)
    torch.testing.assert_close(encoder.encode(encoder.embed(images), raster(encoder)).input, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_under_a_mask_are_those_of_encode_under_it(name):
    encoder = family(name)
    images, mask = images_for(encoder), causal(encoder)
    final = encoder.encode(encoder.embed(images), raster(encoder), mask).final
    found = encoder.features(images, mask)
    torch.testing.assert_close(found, final[:, encoder.num_prefix :].mean(1))
    assert torch.equal(encoder(images, mask), found)
    assert torch.equal(encoder(images), encoder.features(images))
    assert (found - encoder.features(images)).abs().max() > 1e-2
    assert (found - encoder.features(images, mask[:1])).abs()[1].max() > 1e-3  # each image has its own


@pytest.mark.parametrize(("name", "kind"), OBJECTIVES)
def test_objectives_train_and_do_not_leak(name, kind):
    model = objective(family(name, depth=1), kind)
    assert_no_leak(model, images_for(model.encoder), generator=torch.Generator().manual_seed(0), draws=2)
    model.train()
    optimizer, batch = torch.optim.AdamW(model.parameters(), lr=1e-2), images_for(model.encoder, 4)
    draw = model.draw(batch, generator=torch.Generator().manual_seed(0))
    losses = []
    while len(losses) < 12 and not (losses and losses[-1] < 0.9 * losses[0]):
        optimizer.zero_grad()
        torch.manual_seed(0)  # torch's layers drop out by default
        loss = model(batch, draw).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_trains(name):
    encoder = family(name)
    out = encoder.encode(encoder.embed(images_for(encoder)), raster(encoder), causal(encoder))
    (out.final * torch.randn(out.final.shape)).sum().backward()
    unused = {name for name, p in encoder.named_parameters() if p.grad is None}
    pooling = ("heads.", "attn_pool.", "pooler.", "mask_token", "head_dist.")  # what no token passes
    assert not {name for name in unused if not any(part in name for part in pooling)}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_attends_by_way_of_the_seam_under_autocast(name, monkeypatch):
    calls, before = [], attention.explicit_attention

    def counted(*args, **kwargs):
        calls.append(1)
        return before(*args, **kwargs)

    monkeypatch.setattr(attention, "explicit_attention", counted)
    encoder = family(name)
    tokens, index, mask = encoder.embed(images_for(encoder)), raster(encoder), causal(encoder)
    precise = encoder.encode(tokens, index, mask).final
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder.encode(tokens, index, mask).final
    assert len(calls) == encoder.depth
    torch.testing.assert_close(half.float(), precise, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("name", "autocast"), PRECISIONS)
def test_gradient_checkpointing_recomputes_and_gives_equal_gradients_in_training_mode(name, autocast):
    encoder = family(name).train()
    found = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        assert encoder.grad_checkpointing == enable
        encoder.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            final = encoder.encode(encoder.embed(images_for(encoder)), raster(encoder), causal(encoder)).final
        final.float().square().sum().backward()
        found.append({n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item(), msg=key)


@pytest.mark.parametrize("name", FAMILIES)
def test_output_in_training_mode_is_the_same_twice_and_that_of_evaluation(name):
    encoder = family(name)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    still = encoder.features(images_for(encoder))
    torch.testing.assert_close(encoder.train().features(images_for(encoder)), still, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_wrapping_changes_nothing_and_state_has_the_models_own_names(name):
    encoder = family(name)
    module = encoder.module
    assert {f"module.{key}" for key in module.state_dict()} == set(encoder.state_dict())
    assert isinstance(encoder, sb.encoders.TokenEncoder)
    assert encoder.no_weight_decay() & {n for n, _ in encoder.named_parameters()}
    training = [part.training for part in module.train().modules()]
    if not name.startswith("nn."):
        again = sb.encoders.wrap(module)
        assert again.module is module
        assert [part.training for part in module.modules()] == training
        assert torch.equal(again.eval().features(images_for(encoder)), encoder.eval().features(images_for(encoder)))


@pytest.mark.parametrize(("name", "autocast"), PRECISIONS)
def test_a_token_that_sees_nothing_makes_no_nan(name, autocast):
    encoder = family(name)
    mask = causal(encoder).clone()
    mask[:, :, encoder.num_prefix + 2] = False
    tokens = encoder.embed(images_for(encoder)).detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        final = encoder.encode(tokens, raster(encoder), mask).final
    final.float().square().sum().backward()
    assert final.isfinite().all()
    assert tokens.grad.isfinite().all()


@pytest.mark.parametrize("name", ["timm ViT", "timm DINOv3", "transformers DINOv3"])
def test_a_model_on_another_type_keeps_its_tables_beside_it(name):
    encoder = family(name).double()
    single = family(name)
    images = images_for(encoder)
    torch.testing.assert_close(encoder.features(images.double()).float(), single.features(images), rtol=1e-4, atol=1e-5)


def test_shaking_matters():
    """The control of these tests: layer scales of 1e-5, as DINOv3 starts with, hide positions."""
    torch.manual_seed(0)
    encoder = FAMILIES["timm DINOv3"]().eval()
    images, moves = images_for(encoder), []
    for _ in range(2):
        with torch.no_grad():
            bare = encoder.encode(encoder.embed(images), None).final[:, encoder.num_prefix :].mean(1)
            moves.append((encoder.features(images) - bare).abs().max().item())
        shaken(encoder)
    assert moves[0] < 1e-4 < 1e-2 < moves[1]
