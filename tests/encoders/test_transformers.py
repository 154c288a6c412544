"""transformers' models: outputs to the bit, rotations per token, attention that honours bool masks."""

import pytest
import torch
import transformers
from torch import nn

from ssl_blocks.encoders import TransformersViT, wrap
from ssl_blocks.testing import check_token_encoder
from tests.encoders.families import FAMILIES, causal, family, images_for, raster, shaken

NAMES = [name for name in FAMILIES if name.startswith("transformers")]
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


def build(name, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZE, **options})
    return shaken(getattr(transformers, f"{name}Model")(config)).eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_models_own_output_is_reproduced_exactly(name):
    encoder = family(name)
    assert isinstance(encoder, TransformersViT)
    images = images_for(encoder)
    encoded = encoder.encode(encoder.embed(images), raster(encoder))
    theirs = encoder.module(images, output_hidden_states=True)
    assert torch.equal(encoded.final, theirs.last_hidden_state)
    for ours, expected in zip(encoded.hidden, theirs.hidden_states[1:], strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Dinov2", {"use_swiglu_ffn": True}),
        ("Dinov2", {"drop_path_rate": 0.5}),
        ("DINOv3ViT", {"use_gated_mlp": True, "num_register_tokens": 4}),
        ("ViT", {"qkv_bias": False, "num_channels": 2, "image_size": [16, 24], "patch_size": [4, 8]}),
    ],
)
def test_the_public_check_passes(name, options, generator):
    check_token_encoder(wrap(build(name, **options)), generator=generator)


def test_registers_have_no_positions():
    encoder = family("transformers DINOv2 with registers")
    embeddings = encoder.module.embeddings
    placed = encoder._place(torch.zeros(1, 1, 16), torch.tensor([[7]]))[0]
    assert torch.equal(placed[0], (embeddings.cls_token + embeddings.position_embeddings[:, :1])[0, 0])
    assert torch.equal(placed[1:5], embeddings.register_tokens[0])
    assert torch.equal(placed[5], embeddings.position_embeddings[0, 8])


def test_rotations_are_those_of_the_index_and_prefix_tokens_are_not_rotated(monkeypatch):
    encoder = family("transformers DINOv3")
    seen = []
    attend = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: seen.append(a) or attend(*a, **k)
    )
    tokens, index, p = torch.randn(2, 3, 16), torch.tensor([[5, 0, 9], [15, 15, 2]]), encoder.num_prefix
    encoder.encode(tokens, index)
    encoder.encode(tokens, None)
    cosines, sines = encoder.module.rope_embeddings(torch.empty(1, 3, 16, 16))
    for turned, plain in zip(seen[0][:2], seen[encoder.depth][:2], strict=True):
        assert torch.equal(turned[:, :, :p], plain[:, :, :p])
        for image in range(2):
            for slot in range(3):
                x, row = plain[image, :, p + slot], index[image, slot]
                across = torch.cat([-x[:, 4:], x[:, :4]], dim=1)
                expected = x * cosines[row] + across * sines[row]
                torch.testing.assert_close(turned[image, :, p + slot], expected, rtol=1e-5, atol=1e-6)


def test_augmented_coordinates_are_left_out_and_the_random_state_untouched():
    model = build("DINOv3ViT", pos_embed_rescale=2.0, num_register_tokens=2).train()
    encoder = wrap(model)
    assert model.training
    assert model.rope_embeddings.training
    images = images_for(encoder)
    assert not torch.equal(model(images).last_hidden_state, model(images).last_hidden_state)  # the control
    state = torch.get_rng_state()
    final = encoder.encode(encoder.embed(images), raster(encoder)).final
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(final, model.eval()(images).last_hidden_state)


# Attention


def test_eager_attention_adds_a_bool_mask_and_so_is_refused():
    model = build("ViT", attn_implementation="eager")
    layer, mask = model.layers[0], torch.eye(17, dtype=torch.bool)[None, None]
    x = torch.randn(1, 17, 16)
    moved = layer(x + torch.randn(1, 17, 16) * (torch.arange(17) > 0)[None, :, None], mask)[0, 0] - layer(x, mask)[0, 0]
    assert moved.abs().max() > 1e-3  # hidden tokens are seen: why it is refused
    message = "attn_implementation='eager' must be 'sdpa': eager attention adds a bool mask"
    with pytest.raises(ValueError, match=message):
        wrap(model)
    encoder = wrap(build("ViT"))
    encoder.module.set_attn_implementation("eager")  # later on
    with pytest.raises(ValueError, match=message):
        encoder.features(images_for(encoder))


def test_transformers_own_checkpointing_is_refused_for_that_of_the_encoder():
    encoder = wrap(build("Dinov2"))
    for layer in encoder.module.encoder.layer:
        layer.gradient_checkpointing = True
    with pytest.raises(
        ValueError, match=r"own gradient checkpointing is on.* call encoder\.set_grad_checkpointing\(\)"
    ):
        encoder.features(images_for(encoder))


def test_dropout_is_honoured_in_training_mode():
    encoder = wrap(build("ViT", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)).train()
    tokens, index = torch.randn(2, 16, 16), raster(encoder)
    assert not torch.equal(encoder.encode(tokens, index).final, encoder.encode(tokens, index).final)
    encoder.eval()
    assert torch.equal(
        encoder.encode(tokens, index, causal(encoder)).final, encoder.encode(tokens, index, causal(encoder)).final
    )


# Refusals


class Maskless(nn.Module):
    """As layers of ViT still were in transformers 5.6, and those of DINOv2 in 5.16."""

    def forward(self, hidden_states):
        return hidden_states


def test_models_that_do_not_fit_are_refused_with_the_reason():
    with pytest.raises(TypeError, match=r"Linear is none of transformers' ViTModel, Dinov2Model, .*, DINOv3ViTModel"):
        TransformersViT(nn.Linear(2, 2))
    config = transformers.ViTConfig(**SIZE)
    with pytest.raises(
        TypeError, match=r"ViTForImageClassification is none of .* of a model with a head, give the part"
    ):
        wrap(transformers.ViTForImageClassification(config))
    beit = transformers.BeitConfig(**SIZE, use_relative_position_bias=True)
    with pytest.raises(TypeError, match="BeitModel adds relative position biases for a full raster grid"):
        wrap(transformers.BeitModel(beit))
    model = build("ViT")
    model.layers[1] = Maskless()
    with pytest.raises(TypeError, match=r"Maskless takes no attention mask .* install transformers>=5\.18"):
        wrap(model)
    model = build("ViT")
    model.embeddings.patch_embeddings.projection = nn.Conv2d(3, 16, 5, 4, 2)
    with pytest.raises(TypeError, match=r"ViTModel has a Conv2d\(.* stem, which mixes pixels"):
        wrap(model)


def test_the_adapter_is_there_before_transformers_is_imported(bare):
    script = "import sys; from ssl_blocks.encoders import TransformersViT; print('transformers' in sys.modules)"
    assert bare(script) == "False"
