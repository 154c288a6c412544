import pytest
import torch
import torchvision.transforms.v2.functional as transforms
from hypothesis import given, strategies as st

from ssl_blocks import PatchTokenizer, PixelTarget, PositionTarget
from ssl_blocks.parts import Target
from tests.reference import arrange_puzzle, blur_images, cut_patches, pixel_target


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([1, 3, 4]),
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 1000),
)
def test_targets_equal_those_by_loop(cell, channels, crop, normalize, seed):
    crop = min(crop, min(cell) - 1)
    if normalize and channels * (cell[0] - crop) * (cell[1] - crop) < 2:
        return
    tokenizer = PatchTokenizer(image_size=(2 * cell[0], 3 * cell[1]), patch_size=cell, channels=channels, crop=crop)
    shape = (2, channels, *tokenizer.image_size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    target = PixelTarget(tokenizer, normalize=normalize)
    values = target(images)
    torch.testing.assert_close(values, pixel_target(cut_patches(images, cell, crop), normalize=normalize))
    assert values.shape[-1] == target.dim


def test_values_go_row_by_row_with_channels_last():
    image = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[10.0, 11.0], [12.0, 13.0]]])[None]
    target = PixelTarget(PatchTokenizer(image_size=2, patch_size=2, channels=2))
    assert target(image).tolist() == [[[0, 10, 1, 11, 2, 12, 3, 13]]]


def test_normalised_patches_have_mean_zero_and_unbiased_variance_one(generator):
    images = 5 * torch.rand(2, 3, 8, 8, generator=generator) + 3
    values = PixelTarget(PatchTokenizer(image_size=8, patch_size=4), normalize=True)(images)
    torch.testing.assert_close(values.mean(-1), torch.zeros(2, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(values.var(-1), torch.ones(2, 4))


def test_a_flat_patch_is_normalised_to_zero_not_nan():
    values = PixelTarget(PatchTokenizer(image_size=4, patch_size=2), normalize=True)(torch.full((1, 3, 4, 4), 0.7))
    torch.testing.assert_close(values, torch.zeros(1, 4, 12), rtol=0, atol=1e-3)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_to_pixels_inverts_the_target(generator, normalize, channels):
    tokenizer = PatchTokenizer(image_size=(8, 12), patch_size=(2, 4), channels=channels)
    target = PixelTarget(tokenizer, normalize=normalize)
    images = torch.rand(2, channels, 8, 12, generator=generator)
    torch.testing.assert_close(target.to_pixels(target(images), images), images)


@pytest.mark.parametrize("normalize", [False, True])
def test_to_pixels_of_cropped_patches_leaves_the_frame_zero(generator, normalize):
    tokenizer = PatchTokenizer(image_size=8, patch_size=4, crop=1)
    target = PixelTarget(tokenizer, normalize=normalize)
    images = torch.rand(2, 3, 8, 8, generator=generator)
    expected = tokenizer.untokenize(tokenizer(images))
    torch.testing.assert_close(target.to_pixels(target(images), images), expected)


# --- blur -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("size", "sigma"), [(9, 1.0), (3, 0.7), (1, 2.0), (5, 4.0)])
def test_blurred_targets_equal_those_by_loop(generator, size, sigma, normalize):
    tokenizer = PatchTokenizer(image_size=(8, 12), patch_size=(2, 4))
    images = torch.rand(2, 3, 8, 12, generator=generator, dtype=torch.float64)
    target = PixelTarget(tokenizer, normalize=normalize, blur=(size, sigma))
    blurred = blur_images(images, size, sigma)
    expected = pixel_target(cut_patches(blurred, (2, 4)), normalize=normalize)
    torch.testing.assert_close(target(images), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(target.to_pixels(target(images), images), blurred, rtol=0, atol=1e-9)


def test_a_blur_is_torchvisions_inside_and_darkens_the_border(generator):
    tokenizer = PatchTokenizer(image_size=24, patch_size=4)
    images = torch.rand(2, 3, 24, 24, generator=generator, dtype=torch.float64) + 0.5
    target = PixelTarget(tokenizer, blur=(9, 1.0))
    ours, theirs = (
        target.to_pixels(target(images), images),
        transforms.gaussian_blur(images, kernel_size=[9, 9], sigma=[1.0, 1.0]),
    )
    torch.testing.assert_close(ours[..., 4:-4, 4:-4], theirs[..., 4:-4, 4:-4], rtol=0, atol=1e-9)
    assert ((ours - theirs)[..., 0, :] < 0).all()  # torchvision reflects at the border, SAIM pads with zeros
    white = torch.ones(1, 3, 24, 24)
    shade = target.to_pixels(target(white), white)
    assert shade[0, 0, 0, 0] < shade[0, 0, 0, 12] < shade[0, 0, 12, 12] == pytest.approx(1.0)


def test_a_blur_keeps_its_precision_under_autocast(generator):
    tokenizer = PatchTokenizer(image_size=8, patch_size=4)
    images = torch.rand(1, 3, 8, 8, generator=generator)
    target = PixelTarget(tokenizer, blur=(3, 1.0))
    with torch.autocast("cpu", torch.bfloat16):
        found = target(images)
    assert torch.equal(found, target(images))


@pytest.mark.parametrize(
    ("blur", "message"),
    [
        ((4, 1.0), r"blur=\(4, 1.0\) must have a kernel of odd size"),
        ((-1, 1.0), r"blur=\(-1, 1.0\) must have a kernel of odd size"),
        ((9, 0.0), r"blur=\(9, 0.0\) must have a positive standard deviation"),
        ((9, float("nan")), r"blur=\(9, nan\) must be 2 values: number 1 a finite number, or None"),
    ],
)
def test_blurs_that_are_none_are_refused(blur, message):
    with pytest.raises(ValueError, match=message):
        PixelTarget(PatchTokenizer(image_size=4, patch_size=2), blur=blur)


def test_a_pixel_target_fills_the_role():
    assert isinstance(PixelTarget(PatchTokenizer(image_size=4, patch_size=2)), Target)


def test_normalising_single_values_is_refused():
    one = PatchTokenizer(image_size=4, patch_size=1, channels=1)
    with pytest.raises(ValueError, match="normalize=True needs patches of at least 2 values: one value has no"):
        PixelTarget(one, normalize=True)
    assert PixelTarget(one).dim == 1


def test_the_class_of_a_token_is_its_raster_position_and_no_image_has_a_table_of_its_own():
    target = PositionTarget(PatchTokenizer(image_size=(4, 6), patch_size=2))
    values = target(torch.zeros(5, 3, 4, 6))
    assert isinstance(target, Target)
    assert (values.shape, target.dim) == ((5, 6, 6), 6)
    assert values.argmax(-1).tolist() == [list(range(6))] * 5
    assert torch.equal(values.sum(-1), torch.ones(5, 6))
    assert values.untyped_storage().nbytes() == 6 * 6 * 4


@given(st.integers(0, 1000), st.sampled_from([0.1, 1.0, 10.0]))
def test_the_surest_patch_lies_on_top_and_places_without_one_stay_empty(seed, scale):
    target = PositionTarget(PatchTokenizer(image_size=(4, 6), patch_size=2))
    logits = scale * torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert target.arrange(logits).tolist() == arrange_puzzle(logits)


def test_patches_are_put_where_the_predictions_say(generator):
    tokenizer = PatchTokenizer.from_grid(image_size=9, grid=2, crop=1)
    target = PositionTarget(tokenizer)
    images = torch.rand(1, 3, 9, 9, generator=generator) + 1
    patches = tokenizer(images)
    torch.testing.assert_close(target.to_pixels(target(images), images), tokenizer.untokenize(patches))
    # patches 0 and 3 change places; 1 and 2 both go to place 1, and 2 is surer
    logits = torch.zeros(1, 4, 4)
    for patch, place, height in ((0, 3, 1.0), (3, 0, 1.0), (1, 1, 1.0), (2, 1, 2.0)):
        logits[0, patch, place] = height
    found = tokenizer(target.to_pixels(logits, images))
    expected = torch.stack([patches[0, 3], patches[0, 2], torch.zeros_like(patches[0, 0]), patches[0, 0]])[None]
    assert torch.equal(found, expected)
