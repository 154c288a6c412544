from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_blocks import encoders
from ssl_blocks.data import to_float
from ssl_blocks.evaluation import Extractor, FeatureError
from ssl_blocks.evaluation.extract import raster_causal_mask
from ssl_blocks.grid import Grid

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def make_images(count: int = 11) -> Tensor:
    return torch.randint(256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def flat_linear() -> nn.Module:
    layer = nn.Linear(48, 5)
    weight = torch.randn(5, 48, generator=torch.Generator().manual_seed(1))
    layer.load_state_dict({"weight": weight, "bias": torch.zeros(5)})
    return nn.Sequential(nn.Flatten(), layer)


class Plain:
    """An encoder that is a function."""

    dim, channels = 5, 3

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        self.features = encode
        self.module = encode if isinstance(encode, nn.Module) else nn.Identity()


def extract(encode: Callable[[Tensor], Tensor], images: Tensor, **options: Any) -> Tensor:
    return Extractor(Plain(encode), MEAN, STD, **options)(images)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 512])
def test_features_equal_one_call_on_normalised_images(batch_size: int) -> None:
    encode, images = flat_linear(), make_images()
    features = extract(encode, images, batch_size=batch_size)
    torch.testing.assert_close(features, encode(to_float(images, MEAN, STD)).detach())


def test_result_can_be_trained_on() -> None:
    features = extract(flat_linear(), make_images())
    assert not features.requires_grad
    probe = nn.Linear(5, 2)
    probe(features).sum().backward()  # raises on inference tensors
    assert probe.weight.grad is not None


def test_encoder_runs_without_gradients_and_in_the_precision_asked_for() -> None:
    seen: list[tuple[bool, torch.dtype]] = []
    module = flat_linear()

    def encode(x: Tensor) -> Tensor:
        features: Tensor = module(x)
        seen.append((torch.is_inference_mode_enabled(), features.dtype))
        return features

    exact = extract(encode, make_images())
    rough = extract(encode, make_images(), dtype=torch.bfloat16)
    assert seen == [(True, torch.float32), (True, torch.bfloat16)]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.3, rtol=0)
    assert not torch.equal(rough, exact)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite(value: float) -> None:
    calls = iter(range(100))

    def encode(x: Tensor) -> Tensor:
        features = x.flatten(1).clone()
        if next(calls) == 1:
            features[2, 3] = value
        return features

    with pytest.raises(ValueError, match="1 of 11 images have NaN or infinite ones, first image 6"):
        extract(encode, make_images(), batch_size=4)


def test_wrong_shape_of_features() -> None:
    with pytest.raises(ValueError, match=r"features of shape \(11, 3, 4, 4\) for 11 images: must be \[11, D\]"):
        extract(lambda x: x, make_images())
    with pytest.raises(ValueError, match=r"features of shape \(1, 48\) for 11 images"):
        extract(lambda x: x.flatten(1)[:1], make_images())


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        extract(flat_linear(), make_images(), batch_size=0)
    with pytest.raises(ValueError, match=r"images of shape \(0, 3, 4, 4\) must be at least one image"):
        extract(flat_linear(), make_images(0))


def test_encoder_features_are_those_in_evaluation_mode() -> None:
    encoder = encoders.timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2, pos_drop_rate=0.5)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    encoder.train()
    features = Extractor(encoder, **statistics)(images)
    assert all(part.training for part in encoder.modules())
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(features, encoder.features(to_float(images, **statistics)))


@pytest.mark.parametrize(
    ("broken", "layer"),
    [("blocks.1.mlp.fc2.bias", r"blocks\.1\.mlp\.fc2"), ("patch_embed.proj.bias", "patch_embed.proj")],
)
def test_layer_that_features_break_in_is_named(broken: str, layer: str) -> None:
    encoder = encoders.timm_vit(image_size=8, patch_size=4, depth=3, embed_dim=16, num_heads=2)
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    with torch.no_grad():
        encoder.module.get_parameter(broken)[0] = float("nan")
    with pytest.raises(FeatureError, match=rf"3 of 3 images .* first image 0, first in its layer {layer} \(") as error:
        Extractor(encoder, (0.5,) * 3, (0.25,) * 3)(images)
    assert error.value.layer == layer.replace("\\", "")
    assert not any(part._forward_hooks for part in encoder.module.modules())


def test_layer_is_named_by_the_image_that_breaks_it() -> None:
    encoder = encoders.timm_vit(image_size=8, patch_size=4, depth=3, embed_dim=16, num_heads=2)
    with torch.no_grad():  # so large that white images overflow half precision, and black ones do not
        encoder.module.patch_embed.proj.weight.fill_(1e3)
        encoder.module.patch_embed.proj.bias.fill_(0)
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[2] = 255
    statistics = {"mean": (0.0,) * 3, "std": (0.25,) * 3}
    Extractor(encoder, **statistics)(images)
    with pytest.raises(FeatureError, match=r"1 of 4 images .* first image 2, first in its layer patch_embed\.proj"):
        Extractor(encoder, dtype=torch.float16, **statistics)(images)


def test_images_that_an_encoder_cannot_take() -> None:
    encoder = encoders.timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2)
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    with pytest.raises(ValueError, match=r"images of shape \(2, 3, 12, 8\) do not fit .* expected \[B, 3, 8, 8\]"):
        Extractor(encoder, **statistics)(torch.zeros(2, 3, 12, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="images have 1 channels, but the encoder takes 3"):
        Extractor(encoder, **statistics)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"mean=\(0\.5,\) must be one number for each of the encoder's 3 channels"):
        Extractor(encoder, (0.5,), (0.25,))

    class Stubborn:
        """An encoder whose model says no in its own way."""

        dim, channels, module = 5, 3, flat_linear()

        def features(self, images: Tensor) -> Tensor:
            features: Tensor = self.module(images)
            return features

    with pytest.raises(ValueError, match=r"images of 3x5x5 .* do not fit the encoder: mat1 and mat2 shapes cannot"):
        Extractor(Stubborn(), **statistics)(torch.zeros(2, 3, 5, 5, dtype=torch.uint8))
    assert Extractor(Stubborn(), **statistics)(make_images()).shape == (11, 5)


def test_other_errors_of_an_encoder_stay_what_they_are() -> None:
    class Tired:
        dim, channels, module = 5, 3, flat_linear()

        def features(self, images: Tensor) -> Tensor:
            if len(images) > 1:
                raise RuntimeError("tired")
            features: Tensor = self.module(images)
            return features

    with pytest.raises(RuntimeError, match=r"^tired$"):
        Extractor(Tired(), MEAN, STD)(make_images())


# --- under a mask -----------------------------------------------------------------------------------------------------


class Masked(encoders.TimmViT):
    """An adapter whose features take a mask."""

    def features(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        index = torch.arange(self.grid.num_tokens, device=images.device).expand(len(images), -1)
        return self.encode(self.embed(images), index, mask).final[:, self.num_prefix :].mean(1)


def masked() -> Masked:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Masked(
            encoders.timm_vit(image_size=8, patch_size=4, depth=3, embed_dim=16, num_heads=2, class_token=True).module
        )


def test_raster_causal_mask_lets_each_token_see_those_before_it() -> None:
    mask = raster_causal_mask(Grid(2, 2), num_prefix=2)[0, 0]
    assert mask[2:, 2:].equal(torch.ones(4, 4, dtype=torch.bool).tril())
    assert mask[2:, :2].all()
    assert mask[:2, :2].all()
    assert not mask[:2, 2:].any()


def test_causal_features_are_those_of_the_encoder_under_its_mask() -> None:
    encoder, images = masked(), torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    causal = Extractor(encoder, MEAN, STD, attention="causal")(images)
    x, index = to_float(images, MEAN, STD), torch.arange(4).expand(3, -1)
    with torch.no_grad():
        by_hand = encoder.eval().encode(encoder.embed(x), index, raster_causal_mask(encoder.grid, 1))
        whole = encoder.features(x)
    torch.testing.assert_close(causal, by_hand.final[:, 1:].mean(1))
    torch.testing.assert_close(Extractor(encoder, MEAN, STD)(images), whole)
    assert not torch.allclose(causal, whole, atol=1e-3)  # the mask is seen


def test_encoders_that_take_no_mask_are_refused() -> None:
    message = r"attention='causal' needs an encoder of tokens whose features\(images, mask=\) .* and Plain is none"
    with pytest.raises(ValueError, match=message):
        Extractor(Plain(flat_linear()), MEAN, STD, attention="causal")
