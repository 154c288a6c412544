"""Segments that follow the picture: superpixels."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.bounds import Count, Pixels, Positive
from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid
from ssl_blocks.parts.tokenize import Images
from ssl_blocks.randomness import check_generator
from ssl_blocks.values import Segments


@checked
def slic(
    images: Float[Tensor, "b c *s"], shape: tuple[int, ...], *, compactness: Positive = 0.5, iterations: Count = 5
) -> Int[Tensor, "b *s"]:
    """Cluster pixels by colour and place around evenly spread centres (Achanta et al., "SLIC Superpixels").

    A pixel goes to the nearest centre of those no further off than their spacing along any axis. Places count in units
    of that spacing, times the compactness; colours count as they are, so normalise images. A superpixel may come out in
    several pieces.

    Args:
        images: ``[B, C, ...]``, of any number of axes.
        shape: number of centres along each axis; their product is the number of superpixels.
        compactness: weight of places; large ones make boxes.
        iterations: how often centres move.

    Returns:
        Numbers of superpixels ``[B, ...]``; some may be empty.

    Raises:
        ValueError: if there is not one number of centres for each axis, there are none or more than pixels, or a number
            is not positive.

    Examples:
        >>> halves = torch.zeros(1, 1, 4, 4)
        >>> halves[..., 1:] = 9.0
        >>> slic(halves, (1, 2))[0, 0]
        tensor([0, 1, 1, 1])
    """
    batch, sizes, axes = len(images), images.shape[2:], len(shape)
    if axes != len(sizes) or not all(1 <= count <= size for count, size in zip(shape, sizes, strict=True)):
        raise ValueError(f"shape={shape} must name from 1 to {tuple(sizes)} centres, one number an axis")
    along = [
        (torch.arange(size, device=images.device) + 0.5) * count / size
        for size, count in zip(sizes, shape, strict=True)
    ]
    place = torch.cartesian_prod(*along).reshape(-1, axes)  # in units of the centres' spacing
    values = torch.cat([images.flatten(2).mT.float(), compactness * place.expand(batch, -1, -1)], dim=-1)
    cell = torch.zeros_like(place[:, 0], dtype=torch.int64)
    for axis, count in enumerate(shape):
        cell = cell * count + place[:, axis].long()
    ids = cell.expand(batch, -1)
    for _ in range(iterations):
        member = F.one_hot(ids, math.prod(shape)).to(values.dtype)
        center = member.mT @ values / member.sum(1).clamp(min=1)[..., None]
        away = (center[:, None, :, -axes:] / compactness - place[:, None]).abs().amax(-1)  # [B, pixels, K]
        apart = torch.cdist(values, center, compute_mode="donot_use_mm_for_euclid_dist")
        ids = (apart + torch.where((away <= 1) & (member.sum(1) > 0)[:, None], 0.0, 1e6)).argmin(-1)
    return ids.reshape(batch, *sizes)


@checked
class SuperpixelPartitioner:
    """Make every superpixel of the picture a segment: a token goes where most of its pixels go.

    Superpixels are those of `slic`. Segments differ in size from image to image, and may come out empty. Grids may have
    any number of axes.

    Args:
        shape: number of centres along each axis, from which superpixels start; one number counts for every axis.
        compactness: weight of places against colours; large ones make boxes.
        iterations: how often centres move.

    Raises:
        ValueError: when called, if the grid does not divide the images, or centres do not fit them.

    Examples:
        >>> segments = SuperpixelPartitioner(shape=(3, 3))(torch.rand(2, 3, 32, 32), Grid(8, 8))
        >>> segments.levels[0].shape, segments.counts
        (torch.Size([2, 64]), (9,))
    """

    def __init__(
        self, *, shape: Pixels | tuple[Pixels, ...], compactness: Positive = 0.5, iterations: Count = 5
    ) -> None:
        self.shape, self.compactness, self.iterations = shape, compactness, iterations

    @torch.no_grad()
    def __call__(self, images: Images, grid: Grid, *, generator: torch.Generator | None = None) -> Segments:
        """Cluster every image; nothing is drawn."""
        check_generator(generator, images.device)
        sizes = tuple(images.shape[2:])
        if len(sizes) != grid.ndim or any(size % n for size, n in zip(sizes, grid.sizes, strict=True)):
            raise ValueError(f"images of {'x'.join(map(str, sizes))} pixels must be a multiple of the grid {grid}")
        shape = (self.shape,) * grid.ndim if isinstance(self.shape, int) else self.shape
        ids = slic(images, shape, compactness=self.compactness, iterations=self.iterations)
        count = math.prod(shape)
        # cells in front, their pixels behind
        cut = [part for size, n in zip(sizes, grid.sizes, strict=True) for part in (n, size // n)]
        split = ids.reshape(len(ids), *cut).permute(0, *range(1, 2 * grid.ndim, 2), *range(2, 2 * grid.ndim + 1, 2))
        votes = F.one_hot(split.reshape(len(ids), grid.num_tokens, -1), count).sum(2)
        return Segments(levels=(votes.argmax(-1),), counts=(count,))
