"""Pictures of what is alike: an image, its neighbours, and whether they are of its class."""

import numpy as np
import pytest
import torch

from ssl_blocks.visualize import draw_neighbours
from ssl_blocks.visualize.panels import ALLOWED, SIGNAL


def test_neighbours_lie_beside_their_image_and_are_framed_by_class() -> None:
    queries, nearest = torch.rand(2, 1, 4, 6), torch.rand(2, 3, 1, 4, 6)
    is_same = torch.tensor([[True, False, False], [True, True, False]])
    figure = draw_neighbours(queries, nearest, is_same=is_same, names=("cat", "dog"))
    panels = np.array(figure.axes).reshape(2, 4)
    for row in range(2):
        shown = [panel.images[0].get_array()[..., 0] for panel in panels[row]]
        for found, wanted in zip(shown, [queries[row], *nearest[row]], strict=True):
            np.testing.assert_allclose(found, wanted[0], rtol=1e-6)
        frames = [panel.spines["left"].get_edgecolor() for panel in panels[row, 1:]]
        assert len({frame for frame, same in zip(frames, is_same[row], strict=True) if same}) == 1
        assert {panel.spines["top"].get_visible() for panel in panels[row, 1:]} == {True}
        assert not panels[row, 0].spines["top"].get_visible()
        styles = [panel.spines["top"].get_linestyle() for panel in panels[row, 1:]]
        assert [style == "-" for style in styles] == is_same[row].tolist()
    assert [panel.get_ylabel() for panel in panels[:, 0]] == ["cat", "dog"]
    assert ALLOWED != SIGNAL


def test_what_does_not_fit_is_named() -> None:
    queries, nearest = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 1, 4, 4)
    with pytest.raises(ValueError, match="neighbours has shape"):
        draw_neighbours(queries, nearest[:1])
    with pytest.raises(ValueError, match="is_same has shape"):
        draw_neighbours(queries, nearest, is_same=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"names=\('cat',\) must be one for each of the 2 queries"):
        draw_neighbours(queries, nearest, names=("cat",))
