"""Pictures of what is alike: an image, its neighbours, and whether they are of its class."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ssl_blocks.visualize import draw_neighbours
from ssl_blocks.visualize.palette import ALLOWED, SIGNAL


def test_neighbours_lie_beside_their_image_and_are_framed_by_class() -> None:
    queries, nearest = torch.rand(2, 1, 4, 6), torch.rand(2, 3, 1, 4, 6)
    is_same = torch.tensor([[True, False, False], [True, True, False]])
    figure = draw_neighbours(queries, nearest, is_same=is_same, names=("cat", "dog"))
    (panel,) = figure.axes
    shown = [picture.get_array()[..., 0] for picture in panel.images]
    for found, wanted in zip(shown, torch.cat([queries[:, None], nearest], 1).flatten(0, 1), strict=True):
        np.testing.assert_allclose(found, wanted[0], rtol=1e-6)
    framed = [frame.get_xy() for frame in panel.patches]
    corners = [(picture.get_extent()[0], picture.get_extent()[3]) for picture in panel.images]
    assert framed == corners[1:4] + corners[5:]
    styles = [(to_hex(frame.get_edgecolor()), frame.get_linestyle() in ("-", "solid")) for frame in panel.patches]
    assert styles == [(to_hex(ALLOWED if same else SIGNAL), bool(same)) for same in is_same.flatten()]
    assert [text.get_text() for text in panel.texts] == ["cat", "dog", "image", "nearest"]
    assert ALLOWED != SIGNAL


def test_what_does_not_fit_is_named() -> None:
    queries, nearest = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 1, 4, 4)
    with pytest.raises(ValueError, match="neighbours has shape"):
        draw_neighbours(queries, nearest[:1])
    with pytest.raises(ValueError, match="is_same has shape"):
        draw_neighbours(queries, nearest, is_same=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"names=\('cat',\) must be one for each of the 2 queries"):
        draw_neighbours(queries, nearest, names=("cat",))
