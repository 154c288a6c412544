import re

import pytest
import torch
from hypothesis import given, strategies as st

from ssl_blocks import Grid, PatchTokenizer
from ssl_blocks.parts import Tokenizer
from tests.reference import cut_grid, cut_patches


@given(st.data())
def test_patches_equal_those_cut_by_loop(data):
    cell = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
    grid = Grid(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)))
    crop = data.draw(st.integers(0, min(cell) - 1))
    batch, channels = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 3, 5]))
    image_size = (grid.height * cell[0], grid.width * cell[1])
    tokenizer = PatchTokenizer(image_size=image_size, patch_size=cell, channels=channels, crop=crop)
    images = torch.arange(batch * channels * image_size[0] * image_size[1]).reshape(batch, channels, *image_size)

    patches = tokenizer(images)

    assert torch.equal(patches, cut_patches(images, cell, crop))
    assert tokenizer.grid == grid
    assert patches.shape == (batch, grid.num_tokens, channels, *tokenizer.patch)
    if not crop:
        assert torch.equal(tokenizer.untokenize(patches), images)


@pytest.mark.parametrize("crop", range(8))
def test_crop_offsets_equal_torchvisions_centre_crop(generator, crop):
    images = torch.rand(2, 3, 16, 24, generator=generator)
    tokenizer = PatchTokenizer(image_size=(16, 24), patch_size=8, crop=crop)
    assert torch.equal(tokenizer(images), cut_patches(images, (8, 8), crop))


@pytest.mark.parametrize(("crop", "offset"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (7, 4)])
def test_odd_crops_are_off_centre_by_turns(crop, offset):
    image = torch.arange(8).expand(8, 8)[None, None]  # every pixel says its column
    for picture in (image, image.mT):
        assert PatchTokenizer(image_size=8, patch_size=8, channels=1, crop=crop)(picture).min() == offset


@pytest.mark.parametrize("crop", [1, 2, 3])
def test_untokenize_puts_cropped_patches_in_place_and_leaves_the_frame_zero(generator, crop):
    tokenizer = PatchTokenizer(image_size=(8, 12), patch_size=4, channels=2, crop=crop)
    images = torch.rand(2, 2, 8, 12, generator=generator) + 1
    back = tokenizer.untokenize(tokenizer(images))
    kept = back != 0
    assert torch.equal(back[kept], images[kept])
    assert kept.sum() == 2 * 2 * 6 * (4 - crop) ** 2
    assert torch.equal(tokenizer(back), tokenizer(images))


def test_one_pixel_patches_are_pixels_in_raster_order():
    images = torch.arange(12).reshape(1, 1, 3, 4)
    assert PatchTokenizer(image_size=(3, 4), patch_size=1, channels=1)(images).flatten().tolist() == list(range(12))


def test_sizes_are_read_height_first_and_one_number_means_a_square():
    tokenizer = PatchTokenizer(image_size=(32, 48), patch_size=(16, 8))
    assert (tokenizer.grid, tokenizer.patch, tokenizer.channels) == (Grid(2, 6), (16, 8), 3)
    square = PatchTokenizer(image_size=32, patch_size=8)
    assert (square.grid, square.patch, square.image_size) == (Grid(4, 4), (8, 8), (32, 32))
    assert PatchTokenizer(image_size=32, patch_size=(16, 8), crop=4).patch == (12, 4)


def test_a_patch_tokenizer_fills_the_role():
    assert isinstance(PatchTokenizer(image_size=8, patch_size=4), Tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image_size": (32, 30), "patch_size": 8},
            "patch_size=8 must divide image_size=(32, 30) (width 30 is not a multiple of 8)",
        ),
        (
            {"image_size": 30, "patch_size": (7, 5)},
            "patch_size=(7, 5) must divide image_size=30 (height 30 is not a multiple of 7)",
        ),
        ({"image_size": 8, "patch_size": 0}, "patch_size=0 must be at least 1"),
        ({"image_size": 0, "patch_size": 1}, "image_size=0 must be at least 1"),
        (
            {"image_size": 8, "patch_size": (4, 2), "crop": 2},
            "crop=2 must be at least 0 and smaller than patch_size=(4, 2)",
        ),
        ({"image_size": 8, "patch_size": 4, "crop": -1}, "crop=-1 must be at least 0"),
        ({"image_size": 8, "patch_size": 4, "channels": 0}, "channels=0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PatchTokenizer(**arguments)


@pytest.mark.parametrize("shape", [(2, 1, 8, 12), (2, 3, 12, 8), (2, 3, 8, 8)])
def test_images_of_another_shape_are_refused(shape):
    tokenizer = PatchTokenizer(image_size=(8, 12), patch_size=4)
    message = f"images of shape {shape} do not fit this tokenizer: expected [B, 3, 8, 12]"
    with pytest.raises(ValueError, match=re.escape(message)):
        tokenizer(torch.zeros(shape))


@given(st.data())
def test_a_grid_that_does_not_divide_the_image_leaves_out_the_remainder(data):
    grid = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
    size = (data.draw(st.integers(grid[0], 17)), data.draw(st.integers(grid[1], 17)))
    cell = (size[0] // grid[0], size[1] // grid[1])
    crop = data.draw(st.integers(0, min(cell) - 1))
    tokenizer = PatchTokenizer.from_grid(image_size=size, grid=grid, channels=2, crop=crop)
    images = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(0)) + 1

    patches = tokenizer(images)
    back = tokenizer.untokenize(patches)

    assert tokenizer.grid == Grid(*grid)
    assert torch.equal(patches, cut_grid(images, grid, crop))
    assert back.shape == images.shape
    assert torch.equal(back[back != 0], images[back != 0])
    assert (back != 0).sum() == patches.numel()
    assert torch.equal(tokenizer(back), patches)


def test_the_grid_of_the_original_leaves_five_pixels_right_and_below():
    tokenizer = PatchTokenizer.from_grid(image_size=96, grid=7, crop=1)
    covered = tokenizer.untokenize(tokenizer(torch.ones(1, 3, 96, 96)))[0, 0] != 0
    assert (tokenizer.cell, tokenizer.patch) == ((13, 13), (12, 12))
    assert not covered[91:].any()
    assert not covered[:, 91:].any()
    assert covered[0, 0]  # one pixel is cropped at the right and below
    assert not covered[12].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 8, "grid": 9}, "grid=9 must be at least 1 and at most one cell per pixel of image_size=8"),
        ({"image_size": (8, 4), "grid": (4, 5)}, "grid=(4, 5) must be at least 1 and at most one cell per pixel"),
        ({"image_size": 8, "grid": 0}, "grid=0 must be at least 1"),
        (
            {"image_size": 32, "grid": 5, "crop": 6},
            "crop=6 must be at least 0 and smaller than the cells of 6x6 pixels that grid=5 makes of image_size=32",
        ),
        ({"image_size": 32, "grid": 5, "crop": -1}, "crop=-1 must be at least 0"),
        ({"image_size": 8, "grid": 2, "channels": 0}, "channels=0 must be at least 1"),
    ],
)
def test_grids_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PatchTokenizer.from_grid(**arguments)


def test_images_of_the_covered_size_are_refused_where_there_is_a_remainder():
    with pytest.raises(ValueError, match=re.escape("expected [B, 3, 96, 96]")):
        PatchTokenizer.from_grid(image_size=96, grid=7)(torch.zeros(1, 3, 91, 91))
