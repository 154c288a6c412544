"""Views: their sizes, their colours, and what each of them is drawn from."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ssl_blocks.data import Augmentation, ColorChanges, MultiCrop, RandomResizedCropFlip, denormalize, multicrop
from ssl_blocks.data.augment import normalize
from ssl_blocks.data.files import read_crop, read_image

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
QUIET = ColorChanges(jitter=0.0, grey=0.0, blur=(0.0, 0.0, 0.0), solarize=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int = 4, channels: int = 3, height: int = 20, width: int = 24) -> Tensor:
    """Smooth images of 0..1, normalised."""
    coarse = torch.rand(batch, channels, 4, 4, generator=seeded(9))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return normalize(fine, MEAN[:channels], STD[:channels])


def crops(colors: ColorChanges | None = QUIET, **options) -> MultiCrop:
    return MultiCrop(16, 8, **{"num_local": 3, "mean": MEAN, "std": STD, "colors": colors, **options})


def whole(colors: ColorChanges | None, images: Tensor, seed: int = 0) -> list[Tensor]:
    """Views that are the images themselves but for their colours, on the 0..1 scale."""
    channels, size = images.shape[1], tuple(images.shape[2:])
    crop = MultiCrop(size, size, num_local=1, mean=MEAN[:channels], std=STD[:channels], flip=False, colors=colors)
    crop.global_crop = crop.local_crop = RandomResizedCropFlip(size, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    views = crop(images, generator=seeded(seed)).images
    return [denormalize(view, MEAN[:channels], STD[:channels]) for view in views]


def test_views_come_global_first_in_their_sizes_and_are_finite():
    views = MultiCrop((16, 12), 8, mean=MEAN, std=STD)(pictures(), generator=seeded())
    assert views.num_global == 2
    assert [tuple(view.shape) for view in views.images] == [(4, 3, 16, 12)] * 2 + [(4, 3, 8, 8)] * 8
    for view in views.images:
        values = denormalize(view, MEAN, STD)
        assert -1e-5 <= values.min() < values.max() <= 1 + 1e-5


def test_without_colours_views_are_random_resized_crops_one_after_the_other():
    images, generator = pictures(), seeded(3)
    found = crops(None)(images, generator=seeded(3)).images
    for number, view in enumerate(found):
        size, scale = (16, (0.4, 1.0)) if number < 2 else (8, (0.05, 0.4))
        assert torch.equal(view, RandomResizedCropFlip(size, scale=scale)(images, generator=generator))


def test_no_change_leaves_colours_as_they_are():
    images = pictures(height=16, width=16)
    for view in whole(QUIET, images):
        torch.testing.assert_close(view, denormalize(images, MEAN, STD), atol=1e-6, rtol=0)


def test_one_generator_decides_everything():
    first, again, other = (crops(ColorChanges())(pictures(), generator=seeded(seed)).images for seed in (0, 0, 1))
    torch.manual_seed(7)  # the global generator has no say
    for one, same, differing in zip(first, again, other, strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, differing)


@pytest.mark.parametrize("change", ["crop", "jitter", "grey", "blur", "solarize"])
def test_every_image_and_view_has_a_draw_of_its_own(change: str):
    images = pictures(1, height=16, width=16).expand(64, -1, -1, -1)
    if change == "crop":
        views = list(crops()(images, generator=seeded()).images)
    else:
        share = (0.5,) * 3 if change == "blur" else 0.5
        views = whole(dataclasses.replace(QUIET, **{change: share}), images)
    for number, view in enumerate(views):
        if change == "solarize" and number != 1:
            torch.testing.assert_close(view, denormalize(images, MEAN, STD), atol=1e-6, rtol=0)
            continue
        changed = torch.stack([(one - view[0]).abs().amax() > 1e-4 for one in view])
        assert changed.any()
        if change != "crop":  # about half of them
            plain = denormalize(images, MEAN, STD)
            assert 16 < int(((view - plain).abs().amax((1, 2, 3)) > 1e-4).sum()) < 48
    assert not torch.equal(views[0], views[1])


def test_changes_are_made_with_the_configured_strength():
    images = pictures(64, height=16, width=16)
    plain = denormalize(images, MEAN, STD)
    for name, adjust in (("brightness", TF.adjust_brightness), ("saturation", TF.adjust_saturation)):
        none = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
        view = whole(dataclasses.replace(QUIET, jitter=1.0, **{**none, name: 0.3}), images)[0]
        low, high = (torch.stack([adjust(one, factor) for one in plain]) for factor in (0.7, 1.3))
        assert (view >= torch.minimum(low, high) - 1e-5).all()
        assert (view <= torch.maximum(low, high) + 1e-5).all()
        share = ((view - low) / (high - low)).flatten(1).nanmedian(1).values  # of the range, image by image
        assert share.min() < 0.2
        assert share.max() > 0.8


@pytest.mark.parametrize("bytes_at_a_time", [1, multicrop.BYTES_CPU])
def test_each_kind_of_view_has_a_blur_of_its_own(bytes_at_a_time: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(multicrop, "BYTES_CPU", bytes_at_a_time)
    images = torch.rand(4, 3, 16, 16, generator=seeded())
    plain = denormalize(images, MEAN, STD).clamp(0, 1)
    for blurred in range(3):
        blur = tuple(float(number == blurred) for number in range(3))
        views = whole(dataclasses.replace(QUIET, blur=blur, sigma=(1.5, 1.5)), images)
        for number, view in enumerate(views):
            expected = TF.gaussian_blur(plain, [11, 11], [1.5, 1.5]) if number == blurred else plain
            torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_grey_views_have_equal_channels():
    view = whole(dataclasses.replace(QUIET, grey=1.0), pictures(height=16, width=16))[0]
    torch.testing.assert_close(view, view[:, :1].expand_as(view))


@pytest.mark.parametrize("channels", [1, 2])
def test_images_that_are_not_rgb_keep_saturation_hue_and_greyness(channels: int):
    images = pictures(channels=channels, height=16, width=16)
    no_blends = ColorChanges(
        jitter=1.0, brightness=0.0, contrast=0.0, hue=0.5, grey=1.0, blur=(0.0, 0.0, 0.0), solarize=0.0
    )
    for view in whole(no_blends, images):
        torch.testing.assert_close(view, denormalize(images, MEAN[:channels], STD[:channels]), atol=1e-6, rtol=0)
    all_changes = whole(ColorChanges(jitter=1.0), images)
    assert all(view.isfinite().all() and view.shape == images.shape for view in all_changes)


def test_there_may_be_no_local_view():
    views = crops(num_local=0)(pictures(), generator=seeded())
    assert [tuple(view.shape[2:]) for view in views.images] == [(16, 16)] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_of_the_images_is_kept(dtype: torch.dtype):
    views = crops(ColorChanges())(pictures().to(dtype), generator=seeded())
    assert {view.dtype for view in views.images} == {dtype}


def test_autocast_changes_nothing():
    plain = crops(ColorChanges())(pictures(), generator=seeded()).images
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = crops(ColorChanges())(pictures(), generator=seeded()).images
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


def test_both_augmentations_have_the_role():
    assert isinstance(crops(), Augmentation)
    assert isinstance(RandomResizedCropFlip(4), Augmentation)
    assert not isinstance(object(), Augmentation)


def test_random_crops_are_made_while_files_are_decoded_and_never_twice():
    crop, images = RandomResizedCropFlip(8), pictures()
    assert crop.file_crop((20, 24)) is crop
    assert crop.finish(images, generator=seeded()) is images


def test_views_are_cut_after_files_are_decoded():
    images = pictures()
    finished, called = (
        cut(images, generator=seeded()).images for crop in [crops(ColorChanges())] for cut in (crop.finish, crop)
    )
    assert all(torch.equal(a, b) for a, b in zip(finished, called, strict=True))


@pytest.mark.parametrize(
    ("image", "size", "box"),
    [
        ((20, 20), (8, 8), (0, 0, 20, 20)),
        ((20, 30), (8, 8), (0, 5, 20, 20)),
        ((30, 20), (8, 8), (5, 0, 20, 20)),
        ((20, 30), (8, 12), (0, 0, 20, 30)),
        ((20, 30), (12, 8), (0, 8, 20, 13)),
        ((64, 30), (8, 12), (22, 0, 20, 30)),
    ],
)
def test_files_are_cut_to_the_largest_centred_part(image: tuple, size: tuple, box: tuple):
    for seed in range(5):
        assert crops().file_crop(size).draw_box(*image, generator=seeded(seed)) == (*box, False)


@pytest.mark.parametrize("shape", [(40, 40), (40, 60), (64, 40)])
def test_files_and_memory_hold_nearly_the_same_picture(shape: tuple[int, int], tmp_path: Path):
    pixels = denormalize(pictures(1, height=shape[0], width=shape[1]), MEAN, STD)[0]
    file = tmp_path / "image.png"
    Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy()).save(file)
    crop = crops().file_crop((20, 20))
    streamed = read_crop(file, lambda h, w: crop.draw_box(h, w, generator=seeded()), (20, 20), channels=3)
    held = read_image(file, channels=3, size=(20, 20))
    assert (streamed.float() - held.float()).abs().max() < 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_size": 0}, "global_size=0 must be at least 1"),
        ({"local_size": (4, 0)}, r"local_size=\(4, 0\) must be 2 values: number 1 at least 1"),
        ({"num_local": -1}, "num_local=-1 must be at least 0"),
        ({"global_scale": (0.5, 0.4)}, r"global_scale=\(0.5, 0.4\) must be"),
        ({"local_scale": (0.0, 0.4)}, r"local_scale=\(0.0, 0.4\) must be"),
    ],
)
def test_wrong_crops_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        MultiCrop(**{"global_size": 8, "local_size": 4, "mean": MEAN, "std": STD, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jitter": 1.5}, "jitter=1.5 must be at least 0 and at most 1"),
        ({"grey": -0.1}, "grey=-0.1 must be at least 0 and at most 1"),
        ({"solarize": 2.0}, "solarize=2.0 must be at least 0 and at most 1"),
        ({"contrast": float("nan")}, "contrast=nan must be a finite number"),
        ({"hue": 0.6}, r"hue=0.6 must be at least 0 and at most 0.5"),
        ({"blur": (1.0, 0.0, 2.0)}, r"blur=\(1.0, 0.0, 2.0\) must be 3 values: number 2 at least 0 and at most 1"),
        ({"sigma": (0.0, 1.0)}, r"sigma=\(0.0, 1.0\) must be \(smallest, largest\) width"),
        ({"sigma": (2.0, 1.0)}, r"sigma=\(2.0, 1.0\) must be \(smallest, largest\) width"),
    ],
)
def test_wrong_colours_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        ColorChanges(**options)


def test_images_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"must be one number for each of 1 channels"):
        crops()(torch.zeros(1, 1, 8, 8))
