"""timm's Eva: rotations are looked up per token, nothing is random, and what cannot work is refused."""

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import nn

import ssl_blocks as sb
from ssl_blocks.encoders import TimmEva, timm_eva, wrap
from ssl_blocks.testing import check_token_encoder
from tests.encoders.families import TABLE, causal, images_for, raster, shaken

SIZE = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 0}

# every way in which the family differs in front of, inside and behind its blocks
NATIVE = {
    "absolute alone (EVA)": ("eva_giant_patch14_224", TABLE.FINAL_NORM),
    "absolute and rotary (EVA-02)": ("eva02_tiny_patch14_224", TABLE.FINAL_NORM),
    "norm behind each branch": ("eva02_enormous_patch14_clip_224", {}),
    "scaled attention and MLP": ("eva02_base_patch16_clip_224", {}),
    "registers, layer scale, rotary alone (DINOv3)": ("vit_small_patch16_dinov3", {}),
    "bias on queries and values": ("vit_small_patch16_dinov3_qkvb", {}),
    "any image size": ("vit_small_patch16_dinov3", {"dynamic_img_size": True}),
    "fixed image size": ("vit_small_patch16_dinov3", {"dynamic_img_size": False}),
    "axial": ("vit_small_patch16_rope_224", {}),
    "axial and absolute": ("vit_small_patch16_rope_ape_224", {}),
    "mixed": ("vit_small_patch16_rope_mixed_224", {}),
    "mixed and absolute": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "mixed, any image size": ("vit_small_patch16_rope_mixed_224", {"dynamic_img_size": True}),
    "register, no class token": ("vit_betwixt_patch16_rope_reg4_gap_256", TABLE.FINAL_NORM),
    "norm before the blocks (Perception Encoder)": ("vit_pe_core_tiny_patch16_384", {}),
    "grouped queries (Sapiens2)": ("vit_base_patch16_sapiens2", {"num_kv_heads": 1}),
    "rectangular": ("vit_small_patch16_rope_224", {"img_size": (16, 24), "patch_size": (4, 8), "in_chans": 2}),
}


def native(name):
    model_name, options = NATIVE[name]
    torch.manual_seed(0)
    return shaken(timm.create_model(model_name, **{**SIZE, **options})).eval()


@pytest.mark.parametrize("name", NATIVE)
def test_timms_own_output_is_reproduced_exactly(name):
    model = native(name)
    encoder = wrap(model)
    assert isinstance(encoder, TimmEva)
    images = images_for(encoder)
    encoded = encoder.encode(encoder.embed(images), raster(encoder))
    assert torch.equal(encoded.final, model.forward_features(images))
    assert encoder.num_prefix == model.num_prefix_tokens
    kept = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    for ours, theirs in zip(encoded.hidden, kept, strict=True):
        assert torch.equal(ours[:, encoder.num_prefix :], theirs)


@pytest.mark.parametrize(
    "name",
    ["norm behind each branch", "scaled attention and MLP", "register, no class token", "grouped queries (Sapiens2)"],
)
def test_the_public_check_passes(name, generator):
    check_token_encoder(wrap(native(name)), generator=generator)


@pytest.mark.parametrize("name", ["axial", "mixed", "registers, layer scale, rotary alone (DINOv3)"])
def test_rotations_are_those_of_the_index_and_prefix_tokens_are_not_rotated(name, monkeypatch):
    """Written out: each query and key turned by the sines and cosines of its own position."""
    encoder = wrap(native(name))
    seen = []
    attend = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: seen.append(a) or attend(*a, **k)
    )
    tokens, index = torch.randn(2, 3, 16), torch.tensor([[5, 0, 9], [15, 15, 2]])
    encoder.encode(tokens, index)
    encoder.encode(tokens, None)
    rope, p = encoder.module.rope, encoder.num_prefix
    table = rope.get_embed(shape=(4, 4))
    (query, key, _), (plain_query, plain_key, _) = seen[0], seen[encoder.depth]
    half = encoder.module.blocks[0].attn.rotate_half
    for turned, plain in ((query, plain_query), (key, plain_key)):
        assert torch.equal(turned[:, :, :p], plain[:, :, :p])
        for image in range(2):
            for slot in range(3):
                for head in range(2):
                    row = (table[0, head] if table.ndim == 4 else table)[index[image, slot]]
                    expected = turn(plain[image, head, p + slot], *row.chunk(2), half=half)
                    torch.testing.assert_close(turned[image, head, p + slot], expected, rtol=1e-5, atol=1e-6)


def turn(x, sine, cosine, *, half):
    """Turn pairs of channels: neighbours, or those half a width apart."""
    out = torch.empty_like(x)
    for i in range(len(x) // 2):
        a, b = (i, i + len(x) // 2) if half else (2 * i, 2 * i + 1)
        out[a] = x[a] * cosine[a] - x[b] * sine[a]
        out[b] = x[b] * cosine[b] + x[a] * sine[b]
    return out


def test_augmented_coordinates_are_left_out_and_the_random_state_untouched():
    torch.manual_seed(0)
    model = shaken(timm.create_model("vit_small_patch16_dinov3", rope_rescale_coords=2.0, **SIZE)).train()
    encoder = wrap(model)
    assert model.training
    images = images_for(encoder)
    augmented = model.forward_features(images)
    assert not torch.equal(augmented, model.forward_features(images))  # the control: timm's own moves
    state = torch.get_rng_state()
    first = encoder.encode(encoder.embed(images), raster(encoder)).final
    assert torch.equal(first, encoder.encode(encoder.embed(images), raster(encoder)).final)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, model.eval().forward_features(images))


def test_learned_frequencies_get_gradients():
    encoder = wrap(native("mixed"))
    final = encoder.encode(encoder.embed(images_for(encoder)), raster(encoder), causal(encoder)).final
    (final * torch.randn(final.shape)).sum().backward()
    assert (encoder.module.rope.freqs.grad.abs().amax((0, 2, 3)) > 0).all()
    assert "module.rope.freqs" in encoder.no_weight_decay()


@pytest.mark.parametrize(
    "name",
    ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224", "eva_giant_patch14_224"],
)
def test_features_are_what_a_plain_call_of_the_built_model_returns(name):
    torch.manual_seed(0)
    encoder = timm_eva(name, image_size=16, patch_size=4, depth=2, embed_dim=16, num_heads=2)
    shaken(encoder).eval()
    images = images_for(encoder)
    torch.testing.assert_close(encoder.features(images), encoder.module(images), rtol=0, atol=1e-6)
    plain = timm.create_model(name, **encoder.model_args).eval()
    plain.load_state_dict(encoder.module.state_dict(), strict=True)
    assert torch.equal(plain(images), encoder.module(images))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("eva02_tiny_patch14_224", {}, ValueError, r"fc_norm\), so tokens would stay .*use_post_transformer_norm=True"),
        ("vit_small_patch16_dinov3", {"patch_drop_rate": 0.5}, ValueError, "patch_drop_rate must be 0"),
        (
            "vit_small_patch16_rope_mixed_224",
            {"rope_jitter_coords": 2.0},
            ValueError,
            "mixed rotary positions are augmented at random in training",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_reason(name, options, error, message):
    with pytest.raises(error, match=message):
        wrap(timm.create_model(name, **SIZE, **options))


def test_a_stem_and_blocks_that_do_not_fit_are_refused():
    model = native("axial")
    model.patch_embed = nn.Sequential(nn.Conv2d(3, 16, 3))
    with pytest.raises(TypeError, match="Eva has a Sequential stem, which mixes pixels of neighbouring patches"):
        TimmEva(model)

    class Maskless(nn.Module):
        def forward(self, x, rope=None):
            return x

    model = native("axial")
    model.blocks[1] = Maskless()
    with pytest.raises(TypeError, match=r"Maskless takes no attention mask \(attn_mask\)"):
        TimmEva(model)


def test_another_family_is_refused():
    with pytest.raises(TypeError, match="Linear is not a timm Eva such as eva02_small_patch14_224"):
        TimmEva(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="VisionTransformer is not a timm Eva"):
        timm_eva("vit_tiny_patch16_224", image_size=32, patch_size=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "eva03_tiny"}, r"name='eva03_tiny' is no timm model; did you mean one of \["),
        ({"embed_dim": 16, "num_heads": 3}, "num_heads=3 must divide embed_dim=16"),
        ({"patch_size": 5}, r"patch_size=5 must divide image_size=16 \(16 % 5 is not 0\)"),
    ],
)
def test_arguments_that_build_no_encoder_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        timm_eva(**{"image_size": 16, "patch_size": 4, "depth": 1, **options})


def test_it_exports_as_timm_models_do(tmp_path):
    from ssl_blocks.encoders import export_encoder

    encoder = timm_eva(image_size=16, patch_size=4, depth=2, embed_dim=16, num_heads=2)
    shaken(encoder).eval()
    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
    export_encoder(encoder, tmp_path / "encoder", tokenizer=tokenizer, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    images = images_for(encoder)
    torch.testing.assert_close(model(images), encoder.features(images), rtol=0, atol=1e-6)


def test_eva_itself_can_be_given():
    model = Eva(img_size=16, patch_size=4, depth=1, embed_dim=16, num_heads=2, use_fc_norm=False, num_classes=0)
    assert wrap(model).module is model
