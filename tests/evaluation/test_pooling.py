"""What is read out of an encoder of tokens."""

import pytest
import torch

from ssl_blocks.encoders import timm_vit
from ssl_blocks.evaluation import AllPlaces, Extractor, PooledLayers, RawPixels

SIZES = {"image_size": 8, "patch_size": 4, "channels": 1, "depth": 3, "embed_dim": 16, "num_heads": 2}


@pytest.fixture
def vit():
    torch.manual_seed(0)
    encoder = timm_vit(**SIZES, class_token=True)
    torch.nn.init.normal_(encoder.module.cls_token)
    return encoder.eval()


def hidden(encoder, images):
    tokens = encoder.embed(images)
    return encoder.encode(tokens, torch.arange(4).expand(len(images), -1)).hidden


@torch.no_grad()
def test_layers_stand_side_by_side_each_normalised(vit) -> None:
    images = torch.randn(5, 1, 8, 8)
    layers = [vit.norm(layer) for layer in hidden(vit, images)]
    means = [layer[:, 1:].mean(1) for layer in layers]
    torch.testing.assert_close(PooledLayers(vit).features(images), vit.features(images))
    torch.testing.assert_close(PooledLayers(vit, layers=3).features(images), torch.cat(means, 1))
    both = [part for layer, mean in zip(layers[1:], means[1:], strict=True) for part in (layer[:, 0], mean)]
    reader = PooledLayers(vit, layers=2, pooling="both")
    torch.testing.assert_close(reader.features(images), torch.cat(both, 1))
    assert reader.dim == 64
    assert reader.pooling == "class token and mean of patches, normalised, of the last 2 layers"
    torch.testing.assert_close(PooledLayers(vit, pooling="class_token").features(images), layers[-1][:, 0])


@torch.no_grad()
def test_places_go_through_an_extractor_and_come_apart_again(vit) -> None:
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    reader = AllPlaces(vit)
    places = reader.grouped(Extractor(reader, (0.5,), (0.5,))(images))
    assert places.shape == (3, 4, 16)
    torch.testing.assert_close(places.mean(1), Extractor(vit, (0.5,), (0.5,))(images))


def test_layers_are_read_under_a_mask(vit) -> None:
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    both = [
        Extractor(PooledLayers(vit, layers=2), (0.5,), (0.5,), attention=how)(images)
        for how in ("bidirectional", "causal")
    ]
    assert not torch.allclose(*both)
    torch.testing.assert_close(both[1][:, 16:], Extractor(vit, (0.5,), (0.5,), attention="causal")(images))


def test_what_an_encoder_does_not_have_is_refused(vit) -> None:
    with pytest.raises(ValueError, match=r"layers=4 must be at least 1 and at most 3, the encoder's blocks"):
        PooledLayers(vit, layers=4)
    with pytest.raises(ValueError, match=r"pooling='both' needs a class token, and the encoder has none: take 'mean'"):
        PooledLayers(timm_vit(**SIZES), pooling="both")
    with pytest.raises(ValueError, match="needs an encoder of tokens, and RawPixels is none"):
        PooledLayers(RawPixels(channels=1, size=(8, 8)), layers=2)
    with pytest.raises(ValueError, match="RawPixels has no tokens and no regions"):
        AllPlaces(RawPixels(channels=1, size=(8, 8)))
