"""What an encoder makes of the places of an image: its features as colours, and where its class token looks."""

import torch
from torch import Tensor

from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid
from ssl_blocks.visualize.panels import Figure, check_shape, make_panels, spread, to_pictures


def principal_colors(features: Tensor) -> Tensor:
    """Turn features ``[B, N, D]`` into colours ``[B, N, 3]``: their first three principal components over all tokens.

    Each component is stretched to 0..1, and turned so that its largest weight is positive. What is alike in features
    has the same colour in every image.
    """
    flat = features.detach().double().flatten(0, 1)
    flat = flat - flat.mean(0)
    axes = torch.linalg.eigh(flat.T @ flat).eigenvectors.flip(1)[:, :3]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    colors = torch.nn.functional.pad(flat @ axes, (0, 3 - axes.shape[1]))
    low, high = colors.amin(0), colors.amax(0)
    shown = (colors - low) / torch.where(high > low, high - low, 1.0)
    return shown.to(features.dtype).reshape(*features.shape[:2], 3)


@checked
def draw_features(images: Tensor, features: Tensor, grid: Grid, *, attention: Tensor | None = None) -> Figure:
    """Show images, and below them their features as colours (see `principal_colors`).

    Args:
        images: ``[B, C, H, W]`` float in 0..1.
        features: of every place, ``[B, N, D]``.
        grid: places of an image.
        attention: how much the class token looks at each place, ``[B, N]``, for a third row; each image by itself.

    Returns:
        A figure with a row of images, one of features and, where given, one of attention.

    Raises:
        ValueError: if shapes do not fit each other, naming the argument.

    Examples:
        >>> len(draw_features(torch.rand(2, 3, 8, 8), torch.rand(2, 16, 5), Grid(4, 4)).axes)
        4
    """
    pictures = to_pictures("images", images, grid)
    check_shape("features", features, (len(pictures), grid.num_tokens, -1))
    rows = {"features": principal_colors(features)}
    if attention is not None:
        check_shape("attention", attention, (len(pictures), grid.num_tokens))
        low, high = attention.amin(1, keepdim=True), attention.amax(1, keepdim=True)
        rows["attention"] = ((attention - low) / (high - low).clamp(min=1e-12))[..., None].expand(-1, -1, 3)
    figure, panels = make_panels(("image", *rows), pictures)
    for column, picture in enumerate(pictures):
        panels[0, column].imshow(picture)
        for row, values in enumerate(rows.values(), start=1):
            panels[row, column].imshow(spread(values[column].float().cpu().numpy(), grid, picture))
    return figure
