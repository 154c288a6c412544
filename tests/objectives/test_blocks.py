"""Blocks that may overlap are predicted one by one from what none of them covers."""

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.objectives import BlockPrediction
from ssl_blocks.parts import RectangleSampler, TargetBlocks
from ssl_blocks.testing import LeakError, assert_no_leak
from tests.recipes import blank, images

GRID = sb.Grid(4, 6)


@pytest.mark.parametrize("seed", range(5))
def test_rectangles_lie_in_the_grid_and_nothing_of_them_is_given(seed):
    sampler = RectangleSampler(count=3, size=(2, 3))
    blocks = sampler(blank(8), GRID, generator=torch.Generator().manual_seed(seed))
    assert blocks.asked.shape == (8, 3, 6)
    assert blocks.given.shape == (8, 24 - 18)
    for given, asked in zip(blocks.given.tolist(), blocks.asked.tolist(), strict=True):
        for block in asked:
            top, left = divmod(block[0], 6)
            assert 0 <= top <= 2
            assert 0 <= left <= 3
            assert block == [6 * (top + y) + left + x for y in range(2) for x in range(3)]
        assert len(set(given)) == 6
        assert not set(given) & {place for block in asked for place in block}


def test_every_place_of_a_rectangle_and_every_given_token_comes_up():
    blocks = RectangleSampler(count=1, size=(2, 3))(blank(2000), GRID, generator=torch.Generator().manual_seed(0))
    corners = torch.bincount(blocks.asked[:, 0, 0], minlength=24)
    assert sorted(corners.nonzero().flatten().tolist()) == [6 * y + x for y in range(3) for x in range(4)]
    assert corners[corners > 0].min() > 2000 / 12 * 0.7
    assert len(blocks.given.unique()) == 24


def test_boxes_of_a_volume_and_stretches_of_a_signal():
    blocks = RectangleSampler(count=2, size=(1, 2, 2))(blank(4), sb.Grid(2, 3, 4))
    grid = torch.arange(24).reshape(2, 3, 4)
    boxes = [grid[z, y : y + 2, x : x + 2].flatten().tolist() for z in range(2) for y in range(2) for x in range(3)]
    assert all(block in boxes for image in blocks.asked.tolist() for block in image)
    stretch = RectangleSampler(count=1, size=(3,))(blank(4), sb.Grid(8)).asked
    assert torch.equal(stretch, stretch[..., :1] + torch.arange(3))


@pytest.mark.parametrize(
    ("count", "size", "message"),
    [
        (0, (1, 1), "(must be|each) at least 1"),
        (1, (0, 1), "each at least 1"),
        (1, (2,), r"size=\(2,\) must leave tokens of the 4x6 grid"),
        (1, (5, 1), r"size=\(5, 1\) must leave tokens of the 4x6 grid"),
        (4, (2, 3), r"count=4 rectangles of size=\(2, 3\) must leave tokens"),
    ],
)
def test_rectangles_that_do_not_fit_are_refused(count, size, message):
    with pytest.raises(ValueError, match=message):
        RectangleSampler(count=count, size=size)(blank(1), GRID)


def build():
    torch.manual_seed(0)
    encoder = sb.encoders.timm_vit(image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, class_token=True)
    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
    return BlockPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        sampler=RectangleSampler(count=3, size=(2, 2)),
        decoder=sb.MaskTokenDecoder(grid=encoder.grid, dim=8, depth=1, num_heads=2, memory_dim=16),
        target=sb.PixelTarget(tokenizer),
    )


def test_each_block_is_predicted_as_if_it_were_alone():
    objective, batch = build(), images(2)
    draw = objective.draw(batch, generator=torch.Generator().manual_seed(0))
    out = objective(batch, draw)
    assert out.predictions.shape == (2, 12, 48)
    for number in range(3):
        alone = objective(batch, TargetBlocks(draw.given, draw.asked[:, number : number + 1]))
        rows = slice(4 * number, 4 * number + 4)
        torch.testing.assert_close(alone.predictions, out.predictions[:, rows], rtol=1e-4, atol=1e-5)
        assert torch.equal(alone.index, out.index[:, rows])


def test_one_block_is_a_masked_autoencoder():
    objective, batch = build(), images(2)
    draw = objective.draw(batch, generator=torch.Generator().manual_seed(0))
    mae = sb.mae(encoder=objective.encoder, tokenizer=objective.tokenizer, decoder=objective.decoder,
                 target=objective.target, loss=objective.loss, head=objective.head)  # fmt: skip
    one = TargetBlocks(draw.given, draw.asked[:, :1])
    order = torch.cat([one.given, one.asked.flatten(1)], dim=1)
    step = (torch.arange(order.shape[1]) >= one.given.shape[1]).long().expand(2, -1)
    same = mae(batch, sb.Serialization(order=order, step=step, step_sizes=(one.given.shape[1], 4)))
    torch.testing.assert_close(objective(batch, one).loss, same.loss)


def test_overlapping_blocks_leak_nothing():
    objective, batch = build(), images(2)
    assert_no_leak(objective, batch, generator=torch.Generator().manual_seed(0), draws=32)
    draw = objective.draw(batch, generator=torch.Generator().manual_seed(0))
    given = objective(batch, draw).given
    assert torch.equal(given.nonzero()[:, 1].view(2, -1), draw.given.sort(1).values)


class Careless:
    """Gives a token that is asked for."""

    def __call__(self, images, grid, *, generator=None):
        blocks = RectangleSampler(count=3, size=(2, 2))(images, grid, generator=generator)
        return TargetBlocks(torch.cat([blocks.given, blocks.asked[:, 0, :1]], 1), blocks.asked)


def test_a_token_that_is_given_and_asked_for_is_a_leak():
    objective = build()
    objective.sampler = Careless()
    with pytest.raises(LeakError, match="depends on position"):
        assert_no_leak(objective, images(2), generator=torch.Generator().manual_seed(0))
