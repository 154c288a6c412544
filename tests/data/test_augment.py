import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from ssl_blocks.data import RandomResizedCropFlip, denormalize, to_float
from ssl_blocks.data.augment import channel_statistics
from ssl_blocks.data.resample import resample


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=seeded(seed))


def draw_boxes(crop: RandomResizedCropFlip, batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    return crop._draw_boxes(batch, height, width, seeded(seed), torch.device("cpu"))


def reference(image: Tensor, box: list[int], is_flipped: bool, size: tuple[int, int]) -> Tensor:
    """Crop, resize and mirror one image."""
    top, left, height, width = box
    part = image[None, :, top : top + height, left : left + width]
    part = F.interpolate(part, size, mode="bilinear", align_corners=False, antialias=True)[0]
    return part.flip(2) if is_flipped else part


@pytest.mark.parametrize("size", [(8, 8), (12, 5), (31, 40)])
def test_resample_equals_crop_resize_and_mirror_image_by_image(size: tuple[int, int]) -> None:
    images = noise(6, 3, 16, 20)
    boxes = torch.tensor([[0, 0, 16, 20], [3, 5, 7, 4], [15, 19, 1, 1], [0, 13, 16, 7], [9, 0, 7, 20], [4, 4, 8, 8]])
    sign = torch.tensor([1.0, -1, 1, -1, -1, 1])
    expected = [reference(image, box, s < 0, size) for image, box, s in zip(images, boxes.tolist(), sign, strict=True)]
    torch.testing.assert_close(resample(images, boxes.float(), sign, size), torch.stack(expected), atol=2e-5, rtol=0)


def test_pixels_outside_the_box_have_no_influence() -> None:
    images, boxes = noise(1, 1, 16, 16), torch.tensor([[4.0, 2.0, 8.0, 9.0]])
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[4:12, 2:11] = False
    changed = torch.where(outside, 100.0, images)
    one = torch.ones(1)
    torch.testing.assert_close(
        resample(images, boxes, one, (32, 32)), resample(changed, boxes, one, (32, 32)), atol=1e-3, rtol=0
    )
    inside = torch.where(outside, images, images + 1)  # positive control
    assert (resample(images, boxes, one, (32, 32)) - resample(inside, boxes, one, (32, 32))).abs().min() > 0.9


@pytest.mark.parametrize("side", [7, 32, 224])
def test_whole_box_is_the_identity(side: int) -> None:
    images = noise(2, 3, side, side)
    crop = RandomResizedCropFlip(side, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    result = crop(images, generator=seeded())
    torch.testing.assert_close(result, images, atol=1e-5, rtol=0)
    assert result.data_ptr() != images.data_ptr()
    boxes = torch.tensor([[0.0, 0.0, side, side]]).expand(2, 4)
    torch.testing.assert_close(resample(images, boxes, torch.ones(2), (side, side)), images, atol=5e-5, rtol=0)


def test_flip_alone_mirrors_about_half_of_the_images() -> None:
    images = noise(200, 1, 8, 8)
    result = RandomResizedCropFlip(8, scale=(1.0, 1.0), ratio=(1.0, 1.0))(images, generator=seeded())
    is_same = torch.isclose(result, images, atol=1e-5).all((1, 2, 3))
    is_mirrored = torch.isclose(result, images.flip(3), atol=1e-5).all((1, 2, 3))
    assert (is_same ^ is_mirrored).all()
    assert 70 < is_mirrored.sum() < 130


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
        (20, 60, (0.8, 1.0), (3 / 4, 4 / 3)),
        (60, 20, (1e-6, 1.0), (0.1, 10.0)),
    ],
)
def test_boxes_lie_inside_and_are_of_the_size_asked_for(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    boxes = draw_boxes(RandomResizedCropFlip(8, scale, ratio), 2000, height, width)
    top, left, h, w = boxes.T
    assert torch.equal(boxes, boxes.round())
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    # rounding moves a side by half a pixel at most
    assert ((w - 0.5) / (h + 0.5) <= ratio[1] + 1e-4).all()
    assert ((w + 0.5) / (h - 0.5) >= ratio[0] - 1e-4).all()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 48)])
def test_boxes_are_distributed_as_in_torchvision(height: int, width: int) -> None:
    scale, ratio = (0.2, 1.0), (3 / 4, 4 / 3)
    ours = draw_boxes(RandomResizedCropFlip(8, scale, ratio), 4000, height, width)
    image = torch.zeros(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(4000)]
    theirs = torch.tensor(params, dtype=torch.float32)
    for quantile in (0.1, 0.5, 0.9):
        torch.testing.assert_close(ours.quantile(quantile, 0), theirs.quantile(quantile, 0), atol=1.01, rtol=0)
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.4, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10), (10, 10)])
def test_a_box_that_never_fits_falls_back_to_the_centre_as_in_torchvision(height: int, width: int) -> None:
    crop = RandomResizedCropFlip(8, scale=(1.0, 1.0), ratio=(0.5, 0.5) if height == width else (0.9, 1.1))
    expected = RandomResizedCrop.get_params(torch.zeros(1, height, width), list(crop.scale), list(crop.ratio))
    assert draw_boxes(crop, 3, height, width).tolist() == [list(expected)] * 3


def test_every_image_has_a_box_of_its_own() -> None:
    images = noise(1, 1, 32, 32).expand(16, -1, -1, -1)
    result = RandomResizedCropFlip(16)(images, generator=seeded())
    assert len({tuple(row) for row in result.flatten(1).tolist()}) == 16


def test_result_follows_the_generator_alone() -> None:
    images, crop = noise(4, 3, 16, 16), RandomResizedCropFlip((8, 12))
    before = torch.get_rng_state()
    result = crop(images, generator=seeded(1))
    assert result.shape == (4, 3, 8, 12)
    assert torch.equal(result, crop(images, generator=seeded(1)))
    assert not torch.equal(result, crop(images, generator=seeded(2)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    images, crop = noise(4, 3, 16, 16), RandomResizedCropFlip(8)
    result = crop(images.to(dtype), generator=seeded())
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), crop(images, generator=seeded()), atol=1e-2, rtol=0)


def test_autocast_does_not_blur_the_boxes() -> None:
    images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    augment = RandomResizedCropFlip(224)
    plain = augment(images, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = augment(images, generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain, under)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.5)])
def test_wrong_scale(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=rf"scale=\({scale[0]}, {scale[1]}\) must be .* within \(0, 1\]"):
        RandomResizedCropFlip(8, scale=scale)


@pytest.mark.parametrize("ratio", [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (-1.0, 1.0)])
def test_wrong_ratio(ratio: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"ratio=\(.*\) must be .*(both above 0|a finite number)"):
        RandomResizedCropFlip(8, ratio=ratio)


def test_wrong_size() -> None:
    with pytest.raises(ValueError, match=r"size=\(8, 0\) must be 2 values: number 1 at least 1"):
        RandomResizedCropFlip((8, 0))


def test_generator_on_another_device() -> None:
    with pytest.raises(ValueError, match="generator is on cpu"):
        RandomResizedCropFlip(8)(torch.zeros(1, 3, 8, 8, device="meta"), generator=seeded())


def test_integer_images() -> None:
    with pytest.raises(TypeError, match=r"(?i)float"):
        RandomResizedCropFlip(8)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


class TestNormalisation:
    def test_train_images_get_mean_0_and_std_1(self) -> None:
        images = (noise(1500, 3, 4, 4) * torch.tensor([255, 100, 10])[:, None, None]).to(torch.uint8)
        mean, std = channel_statistics(images)
        x = to_float(images, mean, std)
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)

    def test_statistics_equal_those_of_floats(self) -> None:
        images = (noise(1500, 2, 4, 4) * 255).to(torch.uint8)
        mean, std = channel_statistics(images)
        pixels = images.double().transpose(0, 1).flatten(1) / 255
        assert mean == pytest.approx(pixels.mean(1).tolist())
        assert std == pytest.approx(pixels.std(1, correction=0).tolist())

    def test_round_trip(self) -> None:
        images = torch.arange(256, dtype=torch.uint8).view(1, 2, 8, 16)
        mean, std = (0.48, 0.1), (0.2, 0.9)
        back = denormalize(to_float(images, mean, std), mean, std)
        assert torch.equal((back * 255).round().to(torch.uint8), images)

    @pytest.mark.parametrize(
        ("mean", "std", "message"),
        [
            ((0.5,), (1.0, 1.0), r"mean=\(0.5,\) must be one number for each of 2 channels"),
            ((0.5, 0.5), (1.0,), r"std=\(1.0,\) must be one number for each of 2 channels"),
            ((0.5, 0.5), (1.0, 0.0), r"std=\(1.0, 0.0\) must be (several values, each )?above 0"),
        ],
    )
    def test_wrong_statistics(self, mean: tuple[float, ...], std: tuple[float, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            to_float(torch.zeros(1, 2, 4, 4, dtype=torch.uint8), mean, std)
        with pytest.raises(ValueError, match=message):
            denormalize(torch.zeros(1, 2, 4, 4), mean, std)
