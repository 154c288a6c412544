"""Pictures of signals, volumes and channels, and of grids that do not divide the picture."""

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_blocks as sb
from ssl_blocks.visualize import draw_reconstructions, draw_segments, draw_steps, reading_order_gif
from ssl_blocks.visualize.panels import spread, to_cells, to_pictures

CASES = {
    "signal": (sb.PatchTokenizer(image_size=(48,), patch_size=8, channels=2), (2, 48)),
    "volume": (sb.PatchTokenizer(image_size=(6, 8, 12), patch_size=(2, 4, 4), channels=1), (1, 6, 8, 12)),
    "channels": (sb.ChannelTokenizer(image_size=(8, 12), patch_size=4, channels=5), (5, 8, 12)),
    "video": (sb.ChannelTokenizer(image_size=8, patch_size=4, channels=6, depth=2), (6, 8, 8)),
    "remainder": (sb.PatchTokenizer.from_grid(image_size=(11, 17), grid=(2, 3)), (3, 11, 17)),
}


@pytest.mark.parametrize("name", ["signal", "volume", "channels", "video"])
def test_every_pixel_shown_is_of_the_token_that_is_said_to_lie_there(name):
    tokenizer, shape = CASES[name]
    grid = tokenizer.grid
    ids = torch.arange(1.0, grid.num_tokens + 1) / grid.num_tokens  # of every pixel, its token
    patches = ids[None, :, None].expand(1, -1, tokenizer.channels)
    patches = patches[(...,) + (None,) * len(tokenizer.patch)].expand(-1, -1, -1, *tokenizer.patch)
    images = tokenizer.untokenize(patches.contiguous())
    assert images.shape == (1, *shape)
    (picture,) = to_pictures("images", images, grid)
    assert np.array_equal(spread(ids.numpy(), grid, picture)[..., 0], picture[..., 0])
    assert set(np.unique(picture)) == set(ids.tolist()) or np.allclose(np.unique(picture), ids.numpy())


def test_slices_lie_side_by_side():
    (picture,) = to_pictures("images", torch.rand(1, 1, 6, 8, 12), sb.Grid(3, 2, 3))
    assert picture.shape == (8, 3 * 12, 3)
    assert to_cells(np.arange(18), sb.Grid(3, 2, 3)).tolist() == [
        [0, 1, 2, 6, 7, 8, 12, 13, 14],
        [3, 4, 5, 9, 10, 11, 15, 16, 17],
    ]


@pytest.mark.parametrize("name", CASES)
def test_all_pictures_can_be_drawn(name, tmp_path):
    tokenizer, shape = CASES[name]
    grid, images = tokenizer.grid, torch.rand(2, *shape)
    segments = sb.BlobPartitioner(counts=(4,))(images, grid)
    draw = sb.RandomSerializer()(segments)
    assert len(draw_segments(images, segments, grid).axes) == 4
    known = torch.rand(2, grid.num_tokens) < 0.5
    assert len(draw_reconstructions(images, images, images, known, grid).axes) == 6
    assert draw_steps(images, images, draw, grid).axes
    reading_order_gif(images[0], draw, grid, tmp_path / "order.gif")
    with Image.open(tmp_path / "order.gif") as animation:
        assert animation.n_frames > 2
