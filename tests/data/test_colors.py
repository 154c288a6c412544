"""Batched changes of colour against torchvision, image by image."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ssl_blocks.data import colors


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pictures(channels: int = 3) -> Tensor:
    """Noise, beside pixels at which conversions to HSV go wrong: greys, pure colours, black and white."""
    images = noise(6, channels, 8, 9)
    images[0, :, :4] = noise(4, 9)
    images[1] = images[1].round()
    images[2] = 0.0
    images[3] = 1.0
    return images


FACTORS = torch.tensor([0.6, 0.9, 1.0, 1.1, 1.4, 0.0])
SHIFTS = torch.tensor([-0.1, 0.05, 0.5, -0.5, 0.1, 0.0])


def test_hue_is_torchvisions_with_a_shift_per_image():
    for turn in range(6):
        turned = SHIFTS.roll(turn)
        expected = [TF.adjust_hue(image, shift.item()) for image, shift in zip(pictures(), turned, strict=True)]
        torch.testing.assert_close(colors.adjust_hue(pictures(), turned), torch.stack(expected), atol=1e-5, rtol=0)
    assert not torch.allclose(colors.adjust_hue(pictures(), SHIFTS), colors.adjust_hue(pictures(), SHIFTS.roll(1)))


def test_luminance_is_torchvisions_grey():
    torch.testing.assert_close(colors.luminance(pictures()), TF.rgb_to_grayscale(pictures()), atol=1e-6, rtol=0)


def of_many_channels(other: Callable[[Tensor], Any]) -> Callable[[Tensor, float], Tensor]:
    """torchvision's blend, for numbers of channels that it does not take."""
    return lambda image, factor: (factor * image + (1 - factor) * other(image)).clamp(0, 1)


ADJUST: dict[int, list[Callable[[Tensor, float], Tensor]]] = {
    3: [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue],
    1: [TF.adjust_brightness, TF.adjust_contrast],
    5: [of_many_channels(lambda image: 0.0), of_many_channels(lambda image: image.mean())],
}


@pytest.mark.parametrize("channels", ADJUST)
def test_jitter_is_torchvisions_in_each_images_order(channels: int):
    order = torch.tensor(list(permutations(range(4))))
    images = torch.cat([pictures(channels), noise(18, channels, 8, 9)])
    factors = torch.cat((0.5 + noise(24, 3, seed=1), noise(24, 1, seed=2) - 0.5), dim=1)
    factors[6:12, :3], factors[6:12, 3] = FACTORS[:, None], SHIFTS
    expected = []
    for image, kinds, amounts in zip(images, order.tolist(), factors.tolist(), strict=True):
        one = image
        for kind in kinds:
            one = ADJUST[channels][kind](one, amounts[kind]) if kind < len(ADJUST[channels]) else one
        expected.append(one)
    found = colors.jitter(images, factors, order)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    assert not torch.allclose(found, colors.jitter(images, factors, order.flip(1)), atol=1e-2)  # order matters


@pytest.mark.parametrize("size", [(16, 20), (7, 9)])
def test_blur_is_torchvisions_with_a_width_per_image(size: tuple[int, int]):
    images, sigmas = noise(4, 3, *size), torch.tensor([0.1, 0.7, 1.3, 2.0])
    expected = [TF.gaussian_blur(x, [13, 13], [s.item()] * 2) for x, s in zip(images, sigmas, strict=True)]
    found = colors.gaussian_blur(images, sigmas, radius=6)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    assert (found[3] - images[3]).abs().max() > 0.2


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3)])
def test_blur_of_images_smaller_than_the_gaussian_keeps_a_plain_area(size: tuple[int, int]):
    found = colors.gaussian_blur(torch.full((2, 3, *size), 0.3), torch.tensor([0.5, 2.0]), radius=6)
    torch.testing.assert_close(found, torch.full((2, 3, *size), 0.3))


def test_solarize_is_torchvisions():
    assert torch.equal(colors.solarize(pictures()), TF.solarize(pictures(), 0.5))
