"""The attentive probe finds what stands in one place, where the mean over places tells little."""

import pytest
import torch

from ssl_blocks.data import ImageSplit
from ssl_blocks.encoders import timm_vit
from ssl_blocks.evaluation import (
    AttentiveHead,
    AttentiveSettings,
    CannotScoreError,
    Extractor,
    Labelled,
    RawPixels,
    attentive_probe,
)

HALF = ((0.5,), (0.5,))
QUICK = AttentiveSettings(lrs=(0.03,), epochs=8, batch_size=32, heads=2)


def scenes(count: int, seed: int) -> ImageSplit:
    """Noise, and at one place of sixteen a bright or a dark patch, which is the class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(80, 176, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    labels, places = (torch.randint(high, (count,), generator=generator) for high in (2, 16))
    for image, label, place in zip(images, labels.tolist(), places.tolist(), strict=True):
        row, column = divmod(place, 4)
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 255 * label
    return ImageSplit(images, labels)


@pytest.fixture(scope="module")
def data() -> Labelled:
    return Labelled(scenes(256, 0), scenes(128, 1))


@pytest.fixture(scope="module")
def extract() -> Extractor:
    torch.manual_seed(0)
    encoder = timm_vit(image_size=16, patch_size=4, channels=1, depth=1, embed_dim=32, num_heads=2)
    return Extractor(encoder, *HALF)


def test_it_looks_where_the_class_stands(extract: Extractor, data: Labelled) -> None:
    found = attentive_probe(extract, data, settings=QUICK)
    assert found.accuracy > 0.9
    assert found.validation == ()
    blind = Labelled(data.train, ImageSplit(data.test.images, 1 - data.test.labels))
    assert attentive_probe(extract, blind, settings=QUICK).accuracy == pytest.approx(1 - found.accuracy)


def test_places_that_are_not_kept_are_made_anew_and_are_the_same(extract, data, monkeypatch) -> None:
    short = AttentiveSettings(lrs=(0.01, 0.03), epochs=2, heads=2)
    kept = attentive_probe(extract, data, settings=short)
    monkeypatch.setattr("ssl_blocks.evaluation.attentive.MOST_KEPT", 0)
    assert attentive_probe(extract, data, settings=short) == kept
    assert len(kept.validation) == 2
    assert kept.chosen == kept.candidates[kept.validation.index(max(kept.validation))]


def test_a_head_attends_by_shares_and_pools_normalised_places() -> None:
    head = AttentiveHead(dim=8, num_classes=3, heads=2, generator=torch.Generator().manual_seed(0))
    places = torch.randn(4, 5, 8)
    values, shares = torch.nn.functional.layer_norm(places, (8,)), head.attention(places)
    keys = (values @ head.key.T).view(4, 5, 2, 4)
    torch.testing.assert_close(shares, (torch.einsum("bnhc,hc->bhn", keys, head.query) / 2).softmax(-1))
    head.weight.data.normal_()
    seen = torch.cat([torch.einsum("bn,bnc->bc", shares[:, h], values[..., 4 * h : 4 * h + 4]) for h in range(2)], 1)
    torch.testing.assert_close(head(places), seen @ head.weight.T + head.bias)
    with pytest.raises(ValueError, match="heads=3 must be at least 1 and divide the 8 features"):
        AttentiveHead(dim=8, num_classes=3, heads=3)


def test_what_cannot_be_scored_is_an_error_of_its_own(extract: Extractor, data: Labelled) -> None:
    pixels = Extractor(RawPixels(channels=1, size=(16, 16)), *HALF)
    with pytest.raises(CannotScoreError, match="RawPixels has no tokens and no regions to look at"):
        attentive_probe(pixels, data, settings=QUICK)
    one = ImageSplit(data.train.images, torch.zeros(256, dtype=torch.int64))
    with pytest.raises(CannotScoreError, match="train has one class"):
        attentive_probe(extract, Labelled(one, one), settings=QUICK)
