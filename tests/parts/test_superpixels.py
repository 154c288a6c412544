"""Superpixels equal their twin, and follow the picture."""

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.parts import SuperpixelPartitioner, slic
from tests.reference import superpixels


def pictures():
    """Two halves of their own colour, and some noise."""
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 0.3
    x[0, :, :, 5:] += 2.0
    x[1, :, 3:] -= 2.0
    return x


@pytest.mark.parametrize(("shape", "compactness"), [((2, 3), 0.5), ((2, 2), 2.0), ((1, 4), 0.1)])
def test_they_equal_their_twin(shape, compactness):
    found = slic(pictures(), shape, compactness=compactness, iterations=3)
    for image, ids in zip(pictures(), found, strict=True):
        assert ids.tolist() == superpixels(image, shape, compactness, 3)
    assert len(found.unique()) > 2


def test_tokens_go_where_most_of_their_pixels_go():
    ids = slic(pictures(), (2, 3))
    segments = SuperpixelPartitioner(shape=(2, 3))(pictures(), sb.Grid(4, 6))
    assert segments.counts == (6,)
    for image in range(2):
        for y in range(4):
            for x in range(6):
                own = ids[image, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten().tolist()
                most = max(sorted(set(own)), key=own.count)
                assert segments.levels[0][image, 6 * y + x] == most


def test_they_follow_the_edge_and_places_count():
    loose, tight = (slic(pictures(), (1, 2), compactness=value)[0] for value in (0.1, 100.0))
    assert (loose[:, :5] == loose[0, 0]).all()
    assert (loose[:, 5:] == loose[0, 11]).all()
    assert loose[0, 0] != loose[0, 11]
    assert (tight[:, :6] == 0).all()  # squares, whatever is seen
    assert (tight[:, 6:] == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (0, 2)}, r"shape=\(0, 2\) must be several values, each at least 1 and at most 32,768"),
        ({"shape": (2,)}, r"shape=\(2,\) must name from 1 to \(8, 12\) centres, one number an axis"),
        ({"shape": (2, 13)}, r"shape=\(2, 13\)"),
        ({"shape": (2, 2), "compactness": 0.0}, r"compactness=0.0 must be above 0"),
        ({"shape": (2, 2), "iterations": 0}, "iterations=0 must be at least 1"),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SuperpixelPartitioner(**options)(pictures(), sb.Grid(4, 6))


def test_the_grid_divides_the_picture():
    with pytest.raises(ValueError, match="images of 8x12 pixels must be a multiple of the grid 3x6"):
        SuperpixelPartitioner(shape=(2, 2))(pictures(), sb.Grid(3, 6))


def test_any_number_of_axes_and_one_number_for_all():
    flat = pictures()
    deep = flat[:, :, None].expand(-1, -1, 4, -1, -1)  # the same picture in every layer
    found = SuperpixelPartitioner(shape=(1, 2, 2))(deep, sb.Grid(2, 4, 6)).levels[0].reshape(2, 2, 24)
    expected = SuperpixelPartitioner(shape=2)(flat, sb.Grid(4, 6)).levels[0]
    assert torch.equal(found, expected[:, None].expand(-1, 2, -1))
    line = torch.cat([torch.zeros(1, 1, 6), torch.full((1, 1, 6), 5.0)], dim=-1)
    ids = SuperpixelPartitioner(shape=2)(line, sb.Grid(6)).levels[0]
    assert ids.tolist() == [[0, 0, 0, 1, 1, 1]]
