import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from ssl_blocks import encoders
from ssl_blocks.data import to_float
from ssl_blocks.evaluation import FeatureError, encoder_features, extract_features

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def make_images(count: int = 11) -> Tensor:
    return torch.randint(256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def flat_linear() -> nn.Module:
    layer = nn.Linear(48, 5)
    weight = torch.randn(5, 48, generator=torch.Generator().manual_seed(1))
    layer.load_state_dict({"weight": weight, "bias": torch.zeros(5)})
    return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 512])
def test_features_equal_one_call_on_normalised_images(batch_size: int) -> None:
    encode, images = flat_linear(), make_images()
    features = extract_features(encode, images, mean=MEAN, std=STD, batch_size=batch_size)
    torch.testing.assert_close(features, encode(to_float(images, MEAN, STD)).detach())


def test_result_can_be_trained_on() -> None:
    features = extract_features(flat_linear(), make_images(), mean=MEAN, std=STD)
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

    exact = extract_features(encode, make_images(), mean=MEAN, std=STD)
    rough = extract_features(encode, make_images(), mean=MEAN, std=STD, autocast_dtype=torch.bfloat16)
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
        extract_features(encode, make_images(), mean=MEAN, std=STD, batch_size=4)


def test_wrong_shape_of_features() -> None:
    with pytest.raises(ValueError, match=r"features of shape \(11, 3, 4, 4\) for 11 images: must be \[11, D\]"):
        extract_features(lambda x: x, make_images(), mean=MEAN, std=STD)
    with pytest.raises(ValueError, match=r"features of shape \(1, 48\) for 11 images"):
        extract_features(lambda x: x.flatten(1)[:1], make_images(), mean=MEAN, std=STD)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        extract_features(flat_linear(), make_images(), mean=MEAN, std=STD, batch_size=0)
    with pytest.raises(ValueError, match=r"images of shape \(0, 3, 4, 4\) must be at least one image"):
        extract_features(flat_linear(), make_images(0), mean=MEAN, std=STD)


def test_import_leaves_heavy_libraries_alone() -> None:
    # the package's own __init__ is not under test: only what evaluation adds to it
    code = (
        "import sys, ssl_blocks; before = set(sys.modules); import ssl_blocks.evaluation;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(new & {'sklearn', 'torchmetrics'})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_encoder_features_are_those_in_evaluation_mode() -> None:
    encoder = encoders.timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2, pos_drop_rate=0.5)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    encoder.train()
    features = encoder_features(encoder, images, **statistics)
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
        encoder_features(encoder, images, mean=(0.5,) * 3, std=(0.25,) * 3)
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
    encoder_features(encoder, images, **statistics)
    with pytest.raises(FeatureError, match=r"1 of 4 images .* first image 2, first in its layer patch_embed\.proj"):
        encoder_features(encoder, images, autocast_dtype=torch.float16, **statistics)


def test_images_that_an_encoder_cannot_take() -> None:
    encoder = encoders.timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2)
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    with pytest.raises(ValueError, match=r"images of shape \(2, 3, 12, 8\) do not fit .* expected \[B, 3, 8, 8\]"):
        encoder_features(encoder, torch.zeros(2, 3, 12, 8, dtype=torch.uint8), **statistics)
    with pytest.raises(ValueError, match="images have 1 channels, but the encoder takes 3"):
        encoder_features(encoder, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), mean=(0.5,), std=(0.25,))

    class Stubborn:
        """An encoder whose model says no in its own way."""

        dim, channels, module = 5, 3, flat_linear()

        def features(self, images: Tensor) -> Tensor:
            features: Tensor = self.module(images)
            return features

    with pytest.raises(ValueError, match=r"images of 3x5x5 .* do not fit the encoder: mat1 and mat2 shapes cannot"):
        encoder_features(Stubborn(), torch.zeros(2, 3, 5, 5, dtype=torch.uint8), **statistics)
    assert encoder_features(Stubborn(), make_images(), **statistics).shape == (11, 5)


def test_other_errors_of_an_encoder_stay_what_they_are() -> None:
    class Tired:
        dim, channels, module = 5, 3, flat_linear()

        def features(self, images: Tensor) -> Tensor:
            if len(images) > 1:
                raise RuntimeError("tired")
            features: Tensor = self.module(images)
            return features

    with pytest.raises(RuntimeError, match=r"^tired$"):
        encoder_features(Tired(), make_images(), mean=(0.5,) * 3, std=(0.25,) * 3)
