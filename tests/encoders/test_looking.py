"""Attention weights are those that the blocks compute, in every family."""

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.encoders import attention_weights
from tests.encoders.families import FAMILIES, causal, family, images_for


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_shares_of_what_may_be_seen(name):
    encoder = family(name)
    images, mask = images_for(encoder), causal(encoder)
    length = encoder.num_prefix + encoder.grid.num_tokens
    for layer in range(encoder.depth):
        weights = attention_weights(encoder, images, layer=layer, mask=mask)
        assert weights.shape == (2, weights.shape[1], length, length)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert (weights.masked_select(~mask.expand_as(weights)) == 0).all()
        assert (weights.masked_select(mask.expand_as(weights)) > 0).all()
    assert not weights.requires_grad


def by_hand(encoder, images, layer):
    """Attention of a block of timm's out of its own projection."""
    index = torch.arange(encoder.grid.num_tokens).expand(len(images), -1)
    states = encoder.encode(encoder.embed(images), index)
    block = encoder.module.blocks[layer]
    x = block.norm1(states.input if layer == 0 else states.hidden[layer - 1])
    query, key, _ = block.attn.qkv(x).reshape(*x.shape[:2], 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return (query @ key.mT * block.attn.head_dim**-0.5).softmax(-1)


def test_they_equal_what_the_block_computes():
    torch.manual_seed(0)
    options = {"embed_dim": 16, "depth": 3, "num_heads": 2, "class_token": True, "proj_drop_rate": 0.5}
    encoder = sb.encoders.timm_vit(image_size=16, patch_size=4, **options).train()
    images = torch.randn(2, 3, 16, 16)
    for layer in range(3):
        found = attention_weights(encoder, images, layer=layer)
        assert encoder.training
        encoder.eval()
        torch.testing.assert_close(found, by_hand(encoder, images, layer), rtol=1e-4, atol=1e-6)
        encoder.train()
    assert torch.equal(attention_weights(encoder, images), found)
    with pytest.raises(IndexError, match="layer=3 must be one of the encoder's 3 blocks"):
        attention_weights(encoder, images, layer=3)


def test_a_block_that_attends_in_another_way_is_refused():
    encoder = sb.encoders.timm_vit(image_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    encoder.module.blocks[1].attn.fused_attn = False
    with pytest.raises(RuntimeError, match=r"called torch's scaled_dot_product_attention 1 times in its 2 blocks"):
        attention_weights(encoder, torch.randn(1, 3, 8, 8))
