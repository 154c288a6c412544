"""torchvision's vision transformer: its blocks are computed from their own layers, dropout included."""

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import ConvStemConfig

from ssl_blocks.encoders import TorchvisionViT, wrap
from tests.encoders.families import causal, family, images_for, raster, shaken

SIZE = {"image_size": 16, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}


def build(**options):
    torch.manual_seed(0)
    return shaken(VisionTransformer(**SIZE, **options)).eval()


def test_torchvisions_own_output_and_logits_are_reproduced():
    model = build(num_classes=5)
    encoder = wrap(model)
    assert isinstance(encoder, TorchvisionViT)
    images = images_for(encoder)
    final = encoder.encode(encoder.embed(images), raster(encoder)).final
    torch.testing.assert_close(final, encoder.native(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.heads(final[:, 0]), model(images), rtol=0, atol=1e-5)


def test_hidden_states_are_those_of_torchvisions_blocks():
    model, states = build(), []
    for block in model.encoder.layers:
        block.register_forward_hook(lambda module, args, out: states.append(out))
    encoder = wrap(model)
    images = images_for(encoder)
    encoder.native(images)
    ours = encoder.encode(encoder.embed(images), raster(encoder)).hidden
    for found, expected in zip(ours, states, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_mask_for_every_image_equals_torchs_inverted_one_for_every_head():
    model = build()
    encoder = wrap(model)
    x, mask = torch.randn(2, 17, 16), causal(encoder)
    block = model.encoder.layers[0]
    run = next(iter(encoder._blocks(None)))
    y = block.ln_1(x)
    attended, _ = block.self_attention(y, y, y, attn_mask=~mask.expand(-1, 2, -1, -1).flatten(0, 1))
    expected = x + attended
    expected = expected + block.mlp(block.ln_2(expected))
    torch.testing.assert_close(run(x, attn_mask=mask), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
def test_dropout_is_honoured_in_training_mode_alone(kind):
    encoder = wrap(build(**{kind: 0.5}))
    tokens, index = torch.randn(2, 16, 16), raster(encoder)

    def run():
        return encoder.encode(tokens, index).hidden[0]

    assert torch.equal(run(), run())
    encoder.train()
    assert not torch.equal(run(), run())
    torch.manual_seed(0)
    mean = torch.stack([run() for _ in range(100)]).mean(0)
    encoder.eval()
    assert (mean - run()).abs().mean() < 0.5 * run().abs().mean()


@pytest.mark.parametrize("site", ["dropout", "mlp.2", "mlp.4"])
def test_dropout_sits_where_torchvision_has_it(site):
    model = build(dropout=0.0)
    encoder = wrap(model)
    block, tokens = model.encoder.layers[0].train(), torch.randn(2, 17, 16)
    everything = block(tokens)
    block.get_submodule(site).p = 1.0  # all is dropped, so nothing is left to chance
    found = next(iter(encoder._blocks(None)))(tokens, attn_mask=None)
    torch.testing.assert_close(found, block(tokens), rtol=0, atol=1e-5)
    assert not torch.allclose(found, everything, atol=1e-2)


def test_dropout_of_attention_draws_as_torchvisions_own():
    model = build(attention_dropout=0.5).train()
    tokens = torch.randn(2, 17, 16)
    torch.manual_seed(3)
    expected = model.encoder.layers[0](tokens)
    torch.manual_seed(3)
    found = next(iter(wrap(model)._blocks(None)))(tokens, attn_mask=None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_positions_and_class_token_are_spared_weight_decay():
    assert family("torchvision ViT").no_weight_decay() == {"module.class_token", "module.encoder.pos_embedding"}


def test_models_that_do_not_fit_are_refused_with_the_reason():
    stem = [ConvStemConfig(out_channels=8, kernel_size=3, stride=2), ConvStemConfig(16, 3, 2)]
    with pytest.raises(TypeError, match="VisionTransformer has a Sequential stem, which mixes pixels of neighbouring"):
        wrap(VisionTransformer(**SIZE, conv_stem_configs=stem))
    with pytest.raises(TypeError, match="Linear is not a torchvision VisionTransformer such as vit_b_16"):
        TorchvisionViT(nn.Linear(2, 2))
    model = build()
    model.conv_proj = nn.Conv2d(3, 16, kernel_size=6, stride=4, padding=1)
    with pytest.raises(TypeError, match=r"has a Conv2d\(3, 16, kernel_size=\(6, 6\).* stem, which mixes pixels"):
        wrap(model)
    model = build()
    model.encoder.layers[1] = nn.Identity()
    with pytest.raises(TypeError, match="Identity is not torchvision's EncoderBlock, whose layers the adapter runs"):
        wrap(model)
    model = build()
    model.encoder.layers[1].self_attention = nn.Identity()
    with pytest.raises(TypeError, match=r"EncoderBlock attends by Identity, expected nn\.MultiheadAttention"):
        wrap(model)
    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 8}):
        model.encoder.layers[1].self_attention = nn.MultiheadAttention(16, 2, batch_first=True, **options)
        with pytest.raises(ValueError, match="EncoderBlock attends to more than the sequence itself"):
            wrap(model)
