"""Signals, volumes, video and channels: parts on grids that are not two axes equal their twins."""

import math
import re

import pytest
import torch
from hypothesis import given, strategies as st

import ssl_blocks as sb
from ssl_blocks.parts import Tokenizer, resample_positions, sincos_table
from tests.reference import blur_images, cube_ids, cut_cells, sincos_axes

AXES = st.integers(1, 4)
SIZES = ((12,), (4, 6, 8), (2, 4, 2, 4))


def images_of(*shape):
    """Every pixel has another value."""
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape) + 1


def blank(grid, batch=3):
    return torch.zeros(batch, 1, *grid.sizes)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- tokenizers -------------------------------------------------------------------------------------------------------


@given(st.data())
def test_patches_equal_those_cut_by_loop(data):
    ndim = data.draw(AXES)
    cell = tuple(data.draw(st.integers(1, 4)) for _ in range(ndim))
    sizes = tuple(data.draw(st.integers(1, 3)) for _ in range(ndim))
    crop = data.draw(st.integers(0, min(cell) - 1))
    image_size = tuple(size * count for size, count in zip(cell, sizes, strict=True))
    tokenizer = sb.PatchTokenizer(image_size=image_size, patch_size=cell, channels=2, crop=crop)
    images = images_of(2, 2, *image_size)

    patches = tokenizer(images)
    back = tokenizer.untokenize(patches)

    assert torch.equal(patches, cut_cells(images, cell, crop))
    assert (tokenizer.grid, tokenizer.patch) == (sb.Grid(*sizes), patches.shape[3:])
    assert torch.equal(back[back != 0], images[back != 0])
    assert (back != 0).sum() == patches.numel()


def test_what_a_grid_does_not_divide_is_left_out_at_the_far_end_of_every_axis():
    tokenizer = sb.PatchTokenizer.from_grid(image_size=(7, 8, 9), grid=(2, 3, 4), channels=1)
    images = images_of(2, 1, 7, 8, 9)
    assert torch.equal(tokenizer(images), cut_cells(images[:, :, :6, :6, :8], (3, 2, 2)))
    back = tokenizer.untokenize(tokenizer(images))
    assert torch.equal(back[:, :, :6, :6, :8], images[:, :, :6, :6, :8])
    assert (back != 0).sum() == 2 * 6 * 6 * 8


def test_one_number_is_meant_for_every_axis_of_the_other():
    tokenizer = sb.PatchTokenizer(image_size=(8, 4, 12), patch_size=4)
    assert (tokenizer.grid, tokenizer.patch) == (sb.Grid(2, 1, 3), (4, 4, 4))
    assert sb.PatchTokenizer(image_size=8, patch_size=(2, 4, 8)).grid == sb.Grid(4, 2, 1)
    assert sb.PatchTokenizer(image_size=(1000,), patch_size=10).grid == sb.Grid(100)


def test_every_channel_is_cut_by_itself_and_channels_are_the_first_axis():
    tokenizer = sb.ChannelTokenizer(image_size=(4, 6), patch_size=2, channels=3)
    images = images_of(2, 3, 4, 6)
    patches = tokenizer(images)
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.grid, tokenizer.patch, tokenizer.channels) == (sb.Grid(3, 2, 3), (1, 2, 2), 1)
    for channel, of_one in enumerate(patches.chunk(3, dim=1)):
        assert torch.equal(of_one[:, :, :, 0], cut_cells(images[:, channel : channel + 1], (2, 2)))
    assert torch.equal(tokenizer.untokenize(patches), images)


def test_channels_of_a_depth_share_a_token():
    video = images_of(2, 8, 4, 4)  # eight grey frames
    tokenizer = sb.ChannelTokenizer(image_size=4, patch_size=2, channels=8, depth=4)
    assert torch.equal(tokenizer(video), cut_cells(video[:, None], (4, 2, 2)))
    signal = sb.ChannelTokenizer(image_size=(6,), patch_size=3, channels=2)
    assert torch.equal(signal(images_of(1, 2, 6)).flatten(), images_of(12))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: sb.PatchTokenizer(image_size=(16, 32, 32), patch_size=(4, 4)),
            "patch_size=(4, 4) must be one number, or one for each axis, as many as image_size=(16, 32, 32) has",
        ),
        (
            lambda: sb.PatchTokenizer(image_size=(16, 30, 32), patch_size=4),
            "patch_size=4 must divide image_size=(16, 30, 32) (axis 1 30 is not a multiple of 4)",
        ),
        (
            lambda: sb.PatchTokenizer.from_grid(image_size=(16, 32, 32), grid=(4, 4)),
            "grid=(4, 4) must be one number, or one for each axis, as many as image_size=(16, 32, 32) has",
        ),
        (lambda: sb.PatchTokenizer(image_size=(), patch_size=4), "image_size=() must be one number, or one for each"),
        (
            lambda: sb.PatchTokenizer(image_size=(8,), patch_size=2)(torch.zeros(2, 3, 8, 8)),
            "images of shape (2, 3, 8, 8) do not fit this tokenizer: expected [B, 3, 8]",
        ),
        (
            lambda: sb.ChannelTokenizer(image_size=8, patch_size=3, channels=4),
            "patch_size=3 must divide image_size=8 (height 8 is not a multiple of 3)",
        ),
        (
            lambda: sb.ChannelTokenizer(image_size=8, patch_size=4, channels=5, depth=2),
            "depth=2 must divide channels=5",
        ),
        (
            lambda: sb.ChannelTokenizer(image_size=8, patch_size=4, channels=5)(torch.zeros(2, 3, 8, 8)),
            "images of shape (2, 3, 8, 8) do not fit this tokenizer: expected [B, 5, 8, 8]",
        ),
        (lambda: sb.TubePartitioner(base=sb.TokenPartitioner())(torch.zeros(2, 1, 8), sb.Grid(8)), "at least two axes"),
        (
            lambda: sb.SquarePartitioner(sides=(2,))(torch.zeros(2, 1, 8), sb.Grid(2, 4, 3)),
            "sides=(2,) must divide the grid 2x4x3 (axis 2 3 is not a multiple of 2)",
        ),
        (
            lambda: sb.GridSubsetPartitioner(period=2)(torch.zeros(2, 1, 8), sb.Grid(2, 4, 3)),
            "period=2 must divide the grid 2x4x3",
        ),
        (
            lambda: sincos_table(sb.Grid(2, 4, 4), 64),
            "dim=64 must be a positive multiple of 6 for sine-cosine positions: an equal, even share for each axis of "
            "the grid 2x4x4",
        ),
        (
            lambda: resample_positions(torch.zeros(1, 8, 4), old=sb.Grid(8), new=sb.Grid(4, 4)),
            "positions of the grid 8 cannot be resampled to 4x4: it has another number of axes",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_pixels_of_a_patch_go_along_the_axes_with_channels_last_and_come_back(sizes, normalize):
    tokenizer = sb.PatchTokenizer(image_size=sizes, patch_size=2, channels=3)
    images, target = torch.rand(2, 3, *sizes, generator=seeded()), sb.PixelTarget(tokenizer, normalize=normalize)
    found = target(images)
    assert (
        found.shape
        == (2, tokenizer.grid.num_tokens, target.dim)
        == (2, math.prod(sizes) // 2 ** len(sizes), target.dim)
    )
    first = images[0, :, *(slice(0, 2) for _ in sizes)].reshape(3, -1).T.flatten()
    expected = (first - first.mean()) / (first.var() + 1e-6).sqrt() if normalize else first
    torch.testing.assert_close(found[0, 0], expected)
    torch.testing.assert_close(target.to_pixels(found, images), images)


def test_a_volume_is_blurred_along_every_axis():
    volume = torch.rand(1, 1, 5, 6, 7, generator=seeded())
    target = sb.PixelTarget(sb.PatchTokenizer(image_size=(5, 6, 7), patch_size=1, channels=1), blur=(3, 0.8))
    slices = blur_images(volume[0], 3, 0.8)  # each slice by itself, then along the first axis: a picture of width 1
    lines = blur_images(slices.reshape(1, 1, 5, 42).movedim(3, 0), 1, 0.8).reshape(42, 1, 5, 1)
    weights = [math.exp(-(i * i) / (2 * 0.8**2)) for i in (-1, 0, 1)]
    padded = torch.nn.functional.pad(lines[:, 0, :, 0], (1, 1))
    expected = sum(w / sum(weights) * padded[:, i : i + 5] for i, w in enumerate(weights))
    torch.testing.assert_close(target(volume).reshape(5, 42), expected.T)


def test_a_puzzle_of_cubes_comes_back():
    tokenizer = sb.PatchTokenizer(image_size=(4, 4, 6), patch_size=2, channels=1)
    target, images = sb.PositionTarget(tokenizer), torch.rand(2, 1, 4, 4, 6, generator=seeded())
    assert torch.equal(target.to_pixels(target(images), images), images)


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(9,), (3, 4), (2, 3, 4), (2, 3, 2, 2)])
def test_sincos_table_equals_scalar_mathematics(sizes):
    dim = 24 * len(sizes)
    expected = torch.tensor(sincos_axes(sizes, dim), dtype=torch.float64)
    torch.testing.assert_close(sincos_table(sb.Grid(*sizes), dim).double(), expected, rtol=0, atol=1e-7)


def test_resampling_one_axis_after_the_other_is_what_timm_does_to_two():
    table = torch.randn(1, 2 + 24, 8, generator=seeded())
    for new in ((12, 8), (3, 2), (6, 5)):
        plane = resample_positions(table, old=sb.Grid(6, 4), new=sb.Grid(*new), num_prefix=2)
        flat = resample_positions(table, old=sb.Grid(1, 6, 4), new=sb.Grid(1, *new), num_prefix=2)
        torch.testing.assert_close(flat, plane, atol=1e-5, rtol=1e-5)
        assert torch.equal(flat[:, :2], table[:, :2])


def test_a_resampled_line_follows_the_places():
    line = torch.linspace(-1, 1, 8)[None, :, None]
    found = resample_positions(line, old=sb.Grid(8), new=sb.Grid(16), antialias=True)[0, :, 0]
    torch.testing.assert_close(found[4:12], ((torch.arange(16) / 2 - 0.25) * 2 / 7 - 1)[4:12], atol=1e-5, rtol=1e-4)


# --- partitioners -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("sides", [(1, 2), (2,)])
def test_cube_ids_equal_those_by_loop(sizes, sides):
    grid = sb.Grid(*sizes)
    segments = sb.SquarePartitioner(sides=sides)(blank(grid), grid)
    segments.check()
    for ids, side, count in zip(segments.levels, sides, segments.counts, strict=True):
        assert ids.tolist() == [cube_ids(sizes, side)] * 3
        assert count == math.prod(size // side for size in sizes)


@pytest.mark.parametrize("sizes", SIZES)
def test_blobs_lie_along_every_axis(sizes):
    grid = sb.Grid(*sizes)
    segments = sb.BlobPartitioner(counts=(5, 2))(blank(grid, 16), grid, generator=seeded())
    segments.check()
    cells = segments.levels[0].reshape(16, *sizes)
    for axis in range(1, len(sizes) + 1):  # neighbours mostly share a blob, and somewhere do not
        near = (cells.narrow(axis, 1, cells.shape[axis] - 1) == cells.narrow(axis, 0, cells.shape[axis] - 1)).float()
        assert 0.3 < near.mean() < 1


@pytest.mark.parametrize("sizes", [(64,), (8, 8, 8)])
def test_blocks_are_stretches_and_boxes_of_the_area_asked_for(sizes):
    grid, share = sb.Grid(*sizes), 0.125
    partitioner = sb.BlockSubsetPartitioner(hidden=share, area=(share, share), aspect=1.0)
    ids = partitioner(blank(grid, 32), grid, generator=seeded()).levels[0].reshape(32, *sizes)
    side = round((share * grid.num_tokens) ** (1 / grid.ndim))
    for one in ids:
        places = one.nonzero()
        assert len(places) == side**grid.ndim
        assert (places.amax(0) - places.amin(0) + 1).tolist() == [side] * grid.ndim  # a single box
    assert len({tuple(one.flatten().tolist()) for one in ids}) > 16


def test_sides_of_a_box_differ_as_the_aspect_says():
    grid, ratios = sb.Grid(16, 16, 16), []
    for aspect in (1.0, 0.25):  # hidden is less than one box, so that no second one is needed
        partitioner = sb.BlockSubsetPartitioner(hidden=0.08, area=(0.1, 0.1), aspect=aspect)
        ids = partitioner(blank(grid, 64), grid, generator=seeded()).levels[0]
        assert (ids.sum(1) == 4096 - int(4096 * 0.92)).all()
        places = [one.reshape(grid.sizes).nonzero() for one in ids]
        spans = torch.stack([place.amax(0) - place.amin(0) + 1 for place in places]).float()
        ratios.append((spans[:, :2] / spans[:, 2:]).log().abs())
    assert ratios[0].max() < 0.01
    assert ratios[1].amax(0).min() > 1  # both first sides
    assert ratios[1].max() < math.log(1 / 0.25) + 0.2  # whole tokens


def test_one_token_of_every_cube_is_kept():
    grid = sb.Grid(4, 2, 6)
    segments = sb.GridSubsetPartitioner(period=2)(blank(grid), grid)
    segments.check()
    kept = segments.levels[0][0].reshape(grid.sizes) == 0
    assert kept.nonzero().tolist() == [[z, 0, x] for z in (0, 2) for x in (0, 2, 4)]


def test_a_tube_is_the_base_in_every_slice():
    grid, base = sb.Grid(3, 4, 4), sb.BlobPartitioner(counts=(5, 2))
    tubes = sb.TubePartitioner(base=base)(blank(grid), grid, generator=seeded())
    tubes.check()
    assert tubes.counts == (5, 2)
    slices = base(blank(grid), sb.Grid(4, 4), generator=seeded())
    for found, one in zip(tubes.levels, slices.levels, strict=True):
        assert torch.equal(found.reshape(3, 3, 16), one[:, None].expand(-1, 3, -1))
