"""Features become colours: alike where features are alike, whatever the image."""

import numpy as np
import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.visualize import draw_features
from ssl_blocks.visualize.feature_maps import principal_colors
from tests.recipes import images


def test_colors_are_the_first_three_components():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 20, 6, generator=generator) * torch.tensor([1.0, 9.0, 0.1, 5.0, 3.0, 0.2])
    colors = principal_colors(features)
    assert (colors.amin((0, 1)).tolist(), colors.amax((0, 1)).tolist()) == ([0.0] * 3, [1.0] * 3)
    flat = features.flatten(0, 1).numpy()
    _, _, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    for color, axis in zip(colors.flatten(0, 1).T.numpy(), axes[:3], strict=True):
        sign = np.sign(axis[np.abs(axis).argmax()])
        assert np.corrcoef(color, sign * (flat @ axis))[0, 1] == pytest.approx(1.0)
    assert torch.equal(principal_colors(torch.ones(1, 4, 2)), torch.zeros(1, 4, 3))  # nothing to tell apart


def test_figures_have_a_row_for_attention_where_there_is_any():
    pictures, features = images(2, 8).sigmoid(), torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(0))
    attention = torch.arange(16.0).expand(2, -1)
    figure = draw_features(pictures, features, sb.Grid(4, 4), attention=attention)
    assert [panel.get_ylabel() for panel in figure.axes[::2]] == ["image", "features", "attention"]
    shown = figure.axes[4].images[0].get_array()[::2, ::2, 0]
    np.testing.assert_allclose(shown.flatten(), np.arange(16) / 15, rtol=1e-5)
    assert len(draw_features(pictures, features, sb.Grid(4, 4)).axes) == 4
    with pytest.raises(ValueError, match=r"features has shape \(2, 15, 5\), expected \(2, 16, any\)"):
        draw_features(pictures, features[:, 1:], sb.Grid(4, 4))
