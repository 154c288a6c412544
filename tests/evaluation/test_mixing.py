"""Augmentation of fine-tuning."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_blocks.evaluation.mixing import Mixing, TrainAugment, timm_draws


def make_images(count: int = 8, channels: int = 3, size: int = 12) -> Tensor:
    return torch.randint(256, (count, channels, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def global_states() -> tuple[object, ...]:
    return random.getstate(), *(part if isinstance(part, int) else str(part) for part in np.random.get_state())  # noqa: NPY002


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_follows_its_seed_and_leaves_global_generators_alone(channels: int) -> None:
    images = make_images(channels=channels)
    augment = TrainAugment((12, 12), mean=(0.5,) * channels)
    before = global_states(), torch.get_rng_state()
    first, again, other = augment(images, seed=3), augment(images, seed=3), augment(images, seed=4)
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert global_states() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_operations_come_on_top_of_crops() -> None:
    images = make_images(64)
    crops_only = TrainAugment((12, 12), mean=(0.5,) * 3, magnitude=None)(images, seed=0)
    changed = TrainAugment((12, 12), mean=(0.5,) * 3)(images, seed=0)
    differ = (crops_only != changed).flatten(1).any(1)
    assert 0.5 < float(differ.float().mean()) < 1  # each of two operations takes place half of the time
    assert torch.equal(crops_only[~differ], changed[~differ])
    # no crop, no mirror by chance: the image itself
    whole = TrainAugment((12, 12), mean=(0.5,) * 3, magnitude=None, crop_scale=(1.0, 1.0))
    assert any(torch.equal(a, b) for a, b in zip(whole(images, seed=0), images, strict=True))


def test_magnitude_counts_and_its_noise_never_reaches_what_pillow_refuses() -> None:
    images = make_images(100, size=8)
    for deviation in (0.0, 5.0):  # Pillow raises where posterising leaves no bit
        TrainAugment((8, 8), mean=(0.5,) * 3, magnitude=10, deviation=deviation)(images, seed=0)
    weak, strong = (TrainAugment((8, 8), mean=(0.5,) * 3, magnitude=m, deviation=0.0)(images, seed=0) for m in (1, 9))
    assert not torch.equal(weak, strong)


def test_other_channels_can_be_cropped_only() -> None:
    with pytest.raises(ValueError, match="magnitude=9 needs images of 1 or 3 channels, but they have 4: set it to"):
        TrainAugment((8, 8), mean=(0.5,) * 4)
    assert TrainAugment((8, 8), mean=(0.5,) * 4, magnitude=None)(make_images(channels=4, size=8), seed=0).shape[1] == 4
    with pytest.raises(ValueError, match=r"magnitude=11 must lie within 0\.\.10, and deviation=0\.5 not be negative"):
        TrainAugment((8, 8), mean=(0.5,), magnitude=11)


def test_mixup_mixes_images_and_labels_by_the_same_share() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2).clone()
    labels = torch.tensor([0, 1, 2, 3])
    mixed, targets = Mixing(4, mixup=0.8, cutmix=0.0, smoothing=0.0)(images, labels, seed=0)
    share = float(targets[0, 0])
    assert 0 < share < 1
    expected = torch.diag(torch.full((4,), share)) + torch.diag(torch.full((4,), 1 - share)).flip(1)
    torch.testing.assert_close(targets, expected)
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets @ torch.arange(4.0))
    assert torch.equal(images[:, 0, 0, 0], torch.arange(4.0))  # what was given is left as it is


def test_cutmix_mixes_labels_by_area() -> None:
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 16, 16)
    seen = set()
    for seed in range(8):
        mixed, targets = Mixing(2, mixup=0.0, cutmix=1.0, smoothing=0.0)(images, torch.tensor([0, 1]), seed=seed)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets[:, 1])
        seen.add(float(targets[0, 0]))
    assert len(seen) > 4


def test_labels_are_smoothed_with_and_without_mixing() -> None:
    images, labels = torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])
    plain = Mixing(4, mixup=0.0, cutmix=0.0, smoothing=0.2)(images, labels, seed=0)[1]
    torch.testing.assert_close(plain[0], torch.tensor([0.85, 0.05, 0.05, 0.05]))
    mixed = Mixing(4, smoothing=0.2)(images, labels, seed=0)[1]
    torch.testing.assert_close(mixed.sum(1), torch.ones(2))
    torch.testing.assert_close(mixed[:, 2:], torch.full((2, 2), 0.05))


def test_mixing_follows_its_seed_and_leaves_global_generators_alone() -> None:
    images, labels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    before = global_states()
    a, b, c = (Mixing(4)(images, labels, seed=seed)[1] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert global_states() == before
    with timm_draws(2**40), pytest.raises(ZeroDivisionError):  # also where something goes wrong inside
        _ = 1 / 0
    assert global_states() == before


def test_wrong_mixing() -> None:
    with pytest.raises(ValueError, match="mixup and cutmix need an even number of images, but there are 3"):
        Mixing(2)(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0]), seed=0)
    assert Mixing(2, mixup=0.0, cutmix=0.0)(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0]), seed=0)[1].shape == (3, 2)
    for wrong in ({"mixup": float("nan")}, {"cutmix": float("inf")}, {"smoothing": float("nan")}):
        with pytest.raises(ValueError, match="must not be negative"):
            Mixing(2, **wrong)
    with pytest.raises(ValueError, match=r"mixup=-1\.0 and cutmix=1\.0 must not be negative"):
        Mixing(2, mixup=-1.0)
    with pytest.raises(ValueError, match=r"smoothing=1\.0 within \[0, 1\)"):
        Mixing(2, smoothing=1.0)
