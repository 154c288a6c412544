"""The adapter reproduces timm's own outputs, and places and masks tokens as asked."""

import inspect

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import ssl_blocks as sb
from ssl_blocks.encoders import TimmViT, timm_vit, wrap
from ssl_blocks.parts import attention

SMALL = {"depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 0}

# every way in which timm's plain vision transformers differ in front of, inside and behind their blocks
NATIVE = {
    "class token": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4}),
    "no class token": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "class_token": False, "fc_norm": False}
                       | {"global_pool": "avg"}),
    "registers, layer scale, positions without prefix": ("vit_small_patch14_reg4_dinov2", {"img_size": 42}),
    "layer scale": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "init_values": 0.1}),
    "no_embed_class": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "no_embed_class": True}),
    "registers with positions": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "reg_tokens": 3}),
    "norm before the blocks (CLIP)": ("vit_base_patch32_clip_224", {"img_size": 64}),
    "attention pooling (SigLIP)": ("vit_base_patch16_siglip_224", {"img_size": 32}),
    "distillation token": ("deit_tiny_distilled_patch16_224", {"img_size": 16, "patch_size": 4}),
    "deit3": ("deit3_small_patch16_224", {"img_size": 16, "patch_size": 4}),
    "any image size": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "dynamic_img_size": True}),
    "query and key norm": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "qk_norm": True}),
    "no positions": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "pos_embed": "none"}),
    "rectangular": ("vit_tiny_patch16_224", {"img_size": (16, 24), "patch_size": (4, 8), "in_chans": 2}),
}  # fmt: skip


def native(name):
    model_name, options = NATIVE[name]
    torch.manual_seed(0)
    model = timm.create_model(model_name, **{**SMALL, **options})
    return shaken(model)


def shaken(model):
    """Move every parameter: zeros, ones and 1e-5 at the start would hide what is left out."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def small(**options):
    arguments = {"image_size": 16, "patch_size": 4, "depth": 3, "embed_dim": 16, "num_heads": 2, **options}
    torch.manual_seed(0)
    encoder = timm_vit(**arguments)
    shaken(encoder)
    return encoder


def images_for(encoder, batch=2):
    height, width = (n * p for n, p in zip((encoder.grid.height, encoder.grid.width), encoder.patch, strict=True))
    return torch.randn(batch, encoder.channels, height, width, generator=torch.Generator().manual_seed(1))


def raster(encoder, batch=2):
    return torch.arange(encoder.grid.num_tokens).expand(batch, -1)


def causal(encoder):
    """Each token sees itself and those before it; prefix tokens see each other, and all see them."""
    step = torch.cat([torch.full((encoder.num_prefix,), -1), torch.arange(encoder.grid.num_tokens)])
    return (step[None, :] <= step[:, None])[None, None]


# What timm computes


@pytest.mark.parametrize("name", NATIVE)
def test_timms_own_output_is_reproduced_exactly(name):
    model = native(name)
    encoder = wrap(model)
    images = images_for(encoder)
    encoded = encoder.encode(encoder.embed(images), raster(encoder))
    assert encoder.num_prefix == model.num_prefix_tokens
    assert torch.equal(encoded.final, model.forward_features(images))
    assert len(encoded.hidden) == encoder.depth
    assert torch.equal(model.norm(encoded.hidden[-1]), encoded.final)


@pytest.mark.parametrize("name", NATIVE)
def test_hidden_states_are_timms_intermediates(name):
    model = native(name)
    encoder = wrap(model)
    images = images_for(encoder)
    encoded = encoder.encode(encoder.embed(images), raster(encoder))
    kept = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    for ours, theirs in zip(encoded.hidden, kept, strict=True):
        assert torch.equal(ours[:, encoder.num_prefix :], theirs)


@pytest.mark.parametrize("positions", ["sincos", "learned", "none"])
@pytest.mark.parametrize("prefix", [{}, {"class_token": True}, {"reg_tokens": 2}], ids=["none", "class", "registers"])
def test_features_are_what_a_plain_call_of_the_exported_model_returns(positions, prefix):
    encoder = small(positions=positions, **prefix)
    images = images_for(encoder)
    torch.testing.assert_close(encoder.features(images), encoder.module(images), rtol=0, atol=1e-6)
    assert encoder.features(images).shape == (2, 16)


def test_state_goes_to_plain_timm_and_back_strictly():
    encoder = small(class_token=True, positions="learned")
    options = {"img_size": 16, "patch_size": 4, "depth": 3, "embed_dim": 16, "num_heads": 2, "num_classes": 0}
    plain = timm.create_model("vit_tiny_patch16_224", global_pool="avg", fc_norm=False, **options).eval()
    plain.load_state_dict(encoder.module.state_dict(), strict=True)
    images = images_for(encoder)
    assert torch.equal(plain(images), encoder.module(images))
    other = small(class_token=True, positions="learned")
    shaken(other)
    other.module.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(other.features(images), encoder.features(images))


def test_wrapping_changes_nothing_in_the_model():
    model = native("class token")
    keys, state = list(model.state_dict()), {k: v.clone() for k, v in model.state_dict().items()}
    encoder = wrap(model)
    encoder.features(images_for(encoder))
    assert encoder.module is model
    assert list(model.state_dict()) == keys
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_it_is_a_token_encoder():
    assert isinstance(small(), sb.encoders.TokenEncoder)
    assert isinstance(wrap(native("class token")), sb.encoders.TokenEncoder)


@pytest.mark.parametrize(
    "member",
    ["module", "norm", "dim", "depth", "grid", "patch", "channels", "num_prefix", "embed", "encode", "features"],
)
def test_members_are_found_without_calling_getattr(member):
    inspect.getattr_static(small(), member)  # what isinstance does from Python 3.12 on


@pytest.mark.parametrize("prefix", [{"class_token": True}, {"reg_tokens": 2}], ids=["class", "registers"])
def test_gradients_of_prefix_tokens_that_see_only_themselves_stay_in_bounds(prefix):
    torch.manual_seed(0)
    encoder = timm_vit(image_size=16, patch_size=4, depth=3, embed_dim=16, num_heads=2, **prefix)
    weights = torch.randn(16)  # a plain sum over a layer norm is constant
    (
        encoder.encode(encoder.embed(images_for(encoder)), raster(encoder), causal(encoder)).final @ weights
    ).sum().backward()
    norms = {name: p.grad.norm() for name, p in encoder.named_parameters() if p.grad is not None}
    assert max(norm for name, norm in norms.items() if "token" in name) < 20 * max(norms["module.norm.weight"], 1)


def test_fixed_positions_are_the_table_of_the_grid_with_prefix_rows_of_zero():
    encoder = timm_vit(image_size=(16, 24), patch_size=4, depth=1, embed_dim=16, num_heads=2, class_token=True)
    table = encoder.module.pos_embed
    assert not table.requires_grad
    assert torch.count_nonzero(table[:, 0]) == 0
    assert torch.equal(table[0, 1:], sb.parts.sincos_table(sb.Grid(4, 6), 16))


def test_learned_positions_are_trained():
    assert small(positions="learned").module.pos_embed.requires_grad


# Where tokens sit


@pytest.mark.parametrize("prefix", [{}, {"class_token": True}, {"reg_tokens": 2}], ids=["none", "class", "registers"])
def test_a_subset_run_equals_a_masked_run(prefix):
    encoder = small(**prefix)
    tokens, p = encoder.embed(images_for(encoder)), encoder.num_prefix
    index = torch.tensor([[3, 9, 4, 15, 0], [1, 2, 12, 7, 8]])
    subset = encoder.encode(sb.values.gather_tokens(tokens, index), index)
    keep = torch.zeros(2, 16, dtype=torch.bool).scatter(1, index, True)
    keep = torch.cat([torch.ones(2, p, dtype=torch.bool), keep], dim=1)
    masked = encoder.encode(tokens, raster(encoder), keep[:, None, None, :].expand(-1, 1, 16 + p, -1))
    torch.testing.assert_close(
        subset.final[:, p:], sb.values.gather_tokens(masked.final[:, p:], index), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(subset.final[:, :p], masked.final[:, :p], rtol=0, atol=1e-5)


def test_tokens_in_another_order_give_the_same_outputs_in_that_order():
    encoder = small(class_token=True)
    tokens = encoder.embed(images_for(encoder))
    index = torch.rand(2, 16).argsort(1)
    straight = encoder.encode(tokens, raster(encoder)).final
    permuted = encoder.encode(sb.values.gather_tokens(tokens, index), index).final
    torch.testing.assert_close(permuted[:, 1:], sb.values.gather_tokens(straight[:, 1:], index), rtol=0, atol=1e-5)
    torch.testing.assert_close(permuted[:, 0], straight[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["class token", "no_embed_class", "distillation token", "registers with positions"])
def test_positions_are_looked_up_per_token(name):
    encoder = wrap(native(name))
    table = encoder.module.pos_embed[0, 0 if encoder.module.no_embed_class else encoder.num_prefix :]
    index = torch.tensor([[5, 5, 2], [0, 15, 7]])
    tokens = torch.randn(2, 3, 16)
    torch.testing.assert_close(
        encoder.encode(tokens, index).final, encoder.encode(tokens + table[index], None).final, rtol=0, atol=1e-6
    )


def test_no_index_means_no_positions():
    encoder = small()
    tokens, permutation = encoder.embed(images_for(encoder)), torch.randperm(16)
    bare = encoder.encode(tokens, None).final
    torch.testing.assert_close(encoder.encode(tokens[:, permutation], None).final, bare[:, permutation])
    assert not torch.allclose(encoder.encode(tokens, raster(encoder)).final, bare, atol=1e-2)


def test_an_encoder_without_a_table_knows_no_positions():
    encoder = small(positions="none")
    assert encoder.module.pos_embed is None
    tokens = encoder.embed(images_for(encoder))
    assert torch.equal(encoder.encode(tokens, raster(encoder)).final, encoder.encode(tokens, None).final)


@pytest.mark.parametrize("name", NATIVE)
def test_images_and_their_patches_embed_alike(name):
    encoder = wrap(native(name)).double()
    images = images_for(encoder).double()
    size = tuple(images.shape[2:])
    patches = sb.PatchTokenizer(image_size=size, patch_size=encoder.patch, channels=encoder.channels)(images)
    torch.testing.assert_close(encoder.embed(patches), encoder.embed(images), rtol=0, atol=1e-12)
    torch.testing.assert_close(encoder.embed(patches[:, 1:]), encoder.embed(images)[:, 1:], rtol=0, atol=1e-12)


def test_a_token_holds_the_pixels_of_its_own_patch_alone():
    encoder = small()
    images = images_for(encoder, 1).requires_grad_()
    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
    for i in (0, 6, 15):
        (gradient,) = torch.autograd.grad(encoder.embed(images)[0, i].sum(), images)
        felt = tokenizer(gradient).abs().flatten(2).sum(-1)[0]
        assert felt.nonzero().flatten().tolist() == [i]


# Masks


@pytest.mark.parametrize("name", NATIVE)
def test_under_a_causal_mask_a_token_feels_the_tokens_up_to_itself_and_no_other(name):
    encoder = wrap(native(name))
    n = encoder.grid.num_tokens
    tokens = torch.randn(1, n, encoder.dim, requires_grad=True)
    final = encoder.encode(tokens, raster(encoder, 1), causal(encoder)).final
    weights = torch.randn(encoder.dim)  # a plain sum over a layer norm is constant
    for i in range(n):
        row = (final[0, encoder.num_prefix + i] * weights).sum()
        (gradient,) = torch.autograd.grad(row, tokens, retain_graph=True)
        felt = gradient[0].abs().sum(-1)
        assert torch.count_nonzero(felt[i + 1 :]) == 0
        assert (felt[: i + 1] > 1e-6).all()


def test_a_class_token_that_sees_patches_leaks_the_future_from_layer_2_on():
    encoder = small(class_token=True)
    tokens = torch.randn(1, 16, 16, requires_grad=True)
    open_mask = causal(encoder).clone()
    open_mask[..., 0, :] = True
    for mask, leaks in ((causal(encoder), [False, False, False]), (open_mask, [False, True, True])):
        hidden = encoder.encode(tokens, raster(encoder, 1), mask).hidden
        found = []
        for states in hidden:
            (gradient,) = torch.autograd.grad(states[0, 1].square().sum(), tokens, retain_graph=True)  # token 0
            found.append(bool(gradient[0, 1:].abs().max() > 1e-7))
        assert found == leaks


def test_one_mask_per_image_is_honoured():
    encoder = small()
    tokens = encoder.embed(images_for(encoder))
    masks = torch.cat([causal(encoder), torch.ones(1, 1, 16, 16, dtype=torch.bool)])
    together = encoder.encode(tokens, raster(encoder), masks).final
    for i in range(2):
        alone = encoder.encode(tokens[i : i + 1], raster(encoder, 1), masks[i : i + 1]).final
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)
    assert not torch.allclose(together, encoder.encode(tokens, raster(encoder), masks[:1]).final, atol=1e-3)


# Checkpointing and the attention seam


def run(encoder, mask, *, autocast=False):
    """Gradients, and how often a block ran."""
    calls = []
    handles = [block.register_forward_pre_hook(lambda *_: calls.append(1)) for block in encoder.module.blocks]
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        encoded = encoder.encode(encoder.embed(images_for(encoder)), raster(encoder), mask)
        loss = sum(states.square().mean() for states in (*encoded.hidden, encoded.final))
    loss.backward()
    for handle in handles:
        handle.remove()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}, len(calls)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_checkpointing_recomputes_each_block_and_gives_equal_gradients(masked, autocast):
    encoder = small(class_token=True).train()
    mask = causal(encoder) if masked else None
    plain, once = run(encoder, mask, autocast=autocast)
    encoder.module.set_grad_checkpointing()
    recomputed, twice = run(encoder, mask, autocast=autocast)
    assert (once, twice) == (3, 6)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=1e-7, msg=name)


def test_gradient_checkpointing_recomputes_nothing_where_no_gradient_is_wanted():
    encoder = small()
    encoder.module.set_grad_checkpointing()
    with torch.no_grad():
        assert encoder.features(images_for(encoder)).isfinite().all()


@pytest.mark.parametrize(("autocast", "calls"), [(False, 0), (True, 3)], ids=["fp32", "bf16"])
def test_the_attention_seam_is_used_in_every_block_under_autocast_alone(monkeypatch, autocast, calls):
    seen = []

    def counted(*args, **kwargs):
        seen.append(args[0].dtype)
        return attention_before(*args, **kwargs)

    attention_before = attention.explicit_attention
    monkeypatch.setattr(attention, "explicit_attention", counted)
    encoder = small()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        encoder.encode(encoder.embed(images_for(encoder)), raster(encoder), causal(encoder))
    assert seen == [torch.bfloat16] * calls


def test_the_attention_seam_agrees_with_timms_own_attention():
    encoder = small(class_token=True)
    images = images_for(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        ours = encoder.encode(encoder.embed(images), raster(encoder)).final
        theirs = encoder.module.forward_features(images)
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0.1)
    torch.testing.assert_close(ours.float(), encoder.module.forward_features(images), rtol=0, atol=0.1)


def test_a_block_that_passes_the_seam_by_is_refused():
    encoder = small()
    encoder.module.blocks[1].attn.fused_attn = False
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match=r"Block did not call .*scaled_dot_product_attention.*TIMM_FUSED_ATTN"),
    ):
        encoder.features(images_for(encoder))


# Refusals


class MasklessBlock(nn.Module):
    def __init__(self, dim, **_):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x):
        return x + self.linear(x)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("vit_tiny_r_s16_p8_224", {"img_size": 32}, TypeError, "HybridEmbed stem, which mixes pixels of neighbouring"),
        ("beit_base_patch16_224", {"img_size": 32, "depth": 1}, TypeError, "relative position biases"),
        ("vit_relpos_small_patch16_224", {"img_size": 32, "depth": 1}, TypeError, "relative position biases"),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (1, 1), "num_heads": (1, 1), "embed_dim": 16},
            TypeError,
            "SwinTransformer adds relative position biases",
        ),
        ("resnet18", {}, TypeError, "ResNet is not a timm VisionTransformer such as"),
        ("vit_tiny_patch16_224", {"patch_drop_rate": 0.5, "depth": 1}, ValueError, "patch_drop_rate must be 0"),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "depth": 1}, ValueError, r"fc_norm\), so tokens would stay"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_reason(name, options, error, message):
    with pytest.raises(error, match=message):
        wrap(timm.create_model(name, num_classes=0, **options))


def test_blocks_that_take_no_mask_are_refused():
    model = VisionTransformer(
        img_size=16, patch_size=4, depth=1, embed_dim=16, num_heads=2, num_classes=0, block_fn=MasklessBlock
    )
    with pytest.raises(TypeError, match=r"MasklessBlock takes no attention mask \(attn_mask\)"):
        TimmViT(model)


def test_a_module_that_is_no_vision_transformer_is_refused():
    with pytest.raises(TypeError, match="Linear is not a timm VisionTransformer"):
        wrap(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 32, 32), r"images of shape \(2, 3, 32, 32\) do not fit the encoder: expected \[B, 3, 16, 16\]"),
        ((2, 1, 16, 16), r"images of shape \(2, 1, 16, 16\) do not fit"),
        ((2, 16, 3, 2, 2), r"patches of shape \(2, 16, 3, 2, 2\) do not fit the encoder: expected \[B, n, 3, 4, 4\]"),
        ((2, 16, 1, 4, 4), r"patches of shape .* expected \[B, n, 3, 4, 4\]"),
    ],
)
def test_pixels_that_are_not_the_encoders_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        small().embed(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_tinny_patch16"}, r"name='vit_tinny_patch16' is no timm model; did you mean one of \["),
        ({"name": "zzz"}, "name='zzz' is no timm model"),
        ({"embed_dim": 16, "num_heads": 3}, "num_heads=3 must divide embed_dim=16"),
        ({"patch_size": 5}, r"patch_size=5 must divide image_size=16 \(16 % 5 is not 0\)"),
        ({"patch_size": (4, 3)}, r"patch_size=\(4, 3\) must divide image_size=16 \(16 % 3 is not 0\)"),
        ({"embed_dim": 18, "num_heads": 2}, "dim=18 must be a positive multiple of 4"),
    ],
)
def test_arguments_that_build_no_encoder_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        timm_vit(**{"image_size": 16, "patch_size": 4, "depth": 1, **options})


def test_unknown_positions_are_named():
    unchecked = inspect.unwrap(timm_vit)  # tests check types on every call, which would speak up first
    with pytest.raises(ValueError, match="positions='rope' must be 'sincos', 'learned' or 'none'"):
        unchecked(image_size=16, patch_size=4, depth=1, positions="rope")


def test_sizes_that_timm_asserts_are_a_value_error():
    with pytest.raises(ValueError, match=r"cannot be built with \{'embed_dim': 100, 'depth': 1\}"):
        timm_vit(image_size=32, patch_size=4, embed_dim=100, depth=1)
