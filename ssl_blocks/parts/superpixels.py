"""Segments that follow the picture: superpixels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.parts.partition import Images
from ssl_blocks.randomness import check_generator
from ssl_blocks.values import Grid, Segments


def slic(
    images: Float[Tensor, "b c h w"], shape: tuple[int, int], *, compactness: float = 0.5, iterations: int = 5
) -> Int[Tensor, "b h w"]:
    """Cluster pixels by colour and place around evenly spread centres (Achanta et al., "SLIC Superpixels").

    A pixel goes to the nearest centre within twice the centres' spacing, in units of which places count, times the
    compactness; colours count as they are, so normalise images. Pieces that come apart are left apart.

    Args:
        images: ``[B, C, H, W]``.
        shape: rows and columns of centres; their product is the number of superpixels.
        compactness: weight of places; large ones make squares.
        iterations: how often centres move.

    Returns:
        Numbers of superpixels ``[B, H, W]``; some may be empty.

    Raises:
        ValueError: if there are no centres, or more than pixels, or a number is not positive.

    Examples:
        >>> halves = torch.zeros(1, 1, 4, 4)
        >>> halves[..., 1:] = 9.0
        >>> slic(halves, (1, 2))[0, 0]
        tensor([0, 1, 1, 1])
    """
    batch, _, height, width = images.shape
    if not (1 <= shape[0] <= height and 1 <= shape[1] <= width):
        raise ValueError(f"shape={shape} must name at least one centre a side, and at most one for each pixel of it")
    if compactness <= 0 or iterations < 1:
        raise ValueError(f"compactness={compactness} must be above 0, and iterations={iterations} at least 1")
    rows, columns = (
        (torch.arange(length, device=images.device) + 0.5) * count / length
        for length, count in ((height, shape[0]), (width, shape[1]))
    )
    place = torch.cartesian_prod(rows, columns)  # in units of the centres' spacing
    values = torch.cat([images.flatten(2).mT.float(), compactness * place.expand(batch, -1, -1)], dim=-1)
    cell = place[:, 0].long() * shape[1] + place[:, 1].long()
    ids = cell.expand(batch, -1)
    for _ in range(iterations):
        member = F.one_hot(ids, shape[0] * shape[1]).to(values.dtype)
        center = member.mT @ values / member.sum(1).clamp(min=1)[..., None]
        away = (center[:, None, :, -2:] / compactness - place[:, None]).abs().amax(-1)  # [B, pixels, K]
        apart = torch.cdist(values, center, compute_mode="donot_use_mm_for_euclid_dist")
        distance = apart + torch.where((away <= 1) & (member.sum(1) > 0)[:, None], 0.0, 1e6)
        ids = distance.argmin(-1)
    return ids.reshape(batch, height, width)


class SuperpixelPartitioner:
    """Make every superpixel of the picture a segment: a token goes where most of its pixels go.

    Superpixels are those of `slic`. Segments differ in size from image to image, and may come out empty.

    Args:
        shape: rows and columns of the centres from which superpixels start.
        compactness: weight of places against colours; large ones make squares.
        iterations: how often centres move.

    Raises:
        ValueError: when called, if the grid does not divide the images, or there are more centres than pixels.

    Examples:
        >>> segments = SuperpixelPartitioner(shape=(3, 3))(torch.rand(2, 3, 32, 32), Grid(8, 8))
        >>> segments.levels[0].shape, segments.counts
        (torch.Size([2, 64]), (9,))
    """

    def __init__(self, *, shape: tuple[int, int], compactness: float = 0.5, iterations: int = 5) -> None:
        self.shape, self.compactness, self.iterations = shape, compactness, iterations

    @torch.no_grad()
    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> Segments:
        """Cluster every image; nothing is drawn."""
        check_generator(generator, images.device)
        height, width = images.shape[-2:]
        if height % grid.height or width % grid.width:
            raise ValueError(f"images of {height}x{width} pixels must be a multiple of the grid {grid}")
        ids = slic(images, self.shape, compactness=self.compactness, iterations=self.iterations)
        count = self.shape[0] * self.shape[1]
        votes = F.one_hot(ids, count).reshape(len(ids), grid.height, height // grid.height, grid.width, -1, count)
        return Segments(levels=(votes.sum((2, 4)).flatten(1, 2).argmax(-1),), counts=(count,))
