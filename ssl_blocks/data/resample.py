"""Resizing: boxes of a whole batch at once, each image with a box of its own; whole images to one size."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ssl_blocks.constants import constant


def resample(
    images: Float[Tensor, "b c h w"],
    boxes: Float[Tensor, "b 4"],
    sign: Float[Tensor, " b"],
    size: tuple[int, int],
) -> Float[Tensor, "b c p q"]:
    """Cut boxes and resize them as a crop and then ``interpolate(mode="bilinear", antialias=True)`` would do.

    Two matrix products with weights of each image's own; where nothing can shrink, one ``grid_sample``.

    Args:
        images: ``[B, C, H, W]`` float32 or float64.
        boxes: ``[B, 4]``: top, left, height, width in pixels.
        sign: ``[B]``: -1 mirrors left to right, 1 does not.
        size: height and width of the result in pixels.
    """
    height, width = images.shape[2:]
    if size[0] >= height and size[1] >= width:  # no box can be larger than its result: nothing to smooth
        return _interpolate(images, boxes, sign, size)
    rows = _weights(boxes[:, 0], boxes[:, 2], height, size[0]).to(images.dtype)
    columns = _weights(boxes[:, 1], boxes[:, 3], width, size[1])
    columns = torch.where(sign[:, None, None] < 0, columns.flip(1), columns).to(images.dtype)
    return rows[:, None] @ images @ columns[:, None].transpose(2, 3)


def fit_images(images: UInt[Tensor, "*batch c h w"], size: tuple[int, int]) -> UInt[Tensor, "*batch c p q"]:
    """Resize images with antialiasing until they just cover ``size`` (height, width), and crop the centre.

    Of an image of extreme shape only the middle is resized: a row of 20,000 pixels would take gigabytes.

    Examples:
        >>> fit_images(torch.zeros(3, 20, 40, dtype=torch.uint8), (10, 10)).shape
        torch.Size([3, 10, 10])
    """
    images = central_part(images, size)
    cover = cover_of(images.shape[-2:], size)
    fitted: Tensor = TF.center_crop(resize(images, cover), list(size))
    return fitted


def cover_of(shape: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width to which an image is resized so that it just covers ``size``."""
    factor = max(size[0] / shape[0], size[1] / shape[1])
    return max(size[0], round(shape[0] * factor)), max(size[1], round(shape[1] * factor))


def central_part(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of images that would be resized to more than four times the side of ``size``; others whole."""
    shape = images.shape[-2:]
    factor = max(size[0] / shape[0], size[1] / shape[1])
    for axis, (length, wanted, cover) in enumerate(zip(shape, size, cover_of(shape, size), strict=True)):
        if cover > 4 * wanted:
            keep = math.ceil(wanted / factor) + 4  # with what interpolation looks at beyond the edge
            keep = min(length, keep + (length - keep) % 2)  # as much on either side
            images = images.narrow(axis - 2, (length - keep) // 2, keep)
    return images


def resize(images: UInt[Tensor, "*batch c h w"], size: Sequence[int]) -> UInt[Tensor, "*batch c p q"]:
    """Resize images of 8 or 16 bits with antialiasing."""
    if images.dtype == torch.uint8:
        resized: Tensor = TF.resize(images, list(size), antialias=True)
        return resized
    wide: Tensor = TF.resize(images.float(), list(size), antialias=True)
    return wide.round().to(images.dtype)


def _weights(
    start: Float[Tensor, " b"], extent: Float[Tensor, " b"], length: int, count: int
) -> Float[Tensor, "b {count} {length}"]:
    """Share of every pixel of a row in every pixel of the result: a triangle as wide as the pixels of the result."""
    scale = (extent / count)[:, None, None]
    center = start[:, None, None] + (torch.arange(count, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(length, device=start.device) + 0.5
    inside = (pixel > start[:, None, None]) & (pixel < (start + extent)[:, None, None])
    weights = (1 - (pixel - center).abs() / scale.clamp(min=1)).clamp(min=0) * inside
    return weights / weights.sum(-1, keepdim=True)


def _interpolate(images: Tensor, boxes: Tensor, sign: Tensor, size: tuple[int, int]) -> Tensor:
    batch, channels, height, width = images.shape
    whole = constant((width, height), like=boxes)
    start, extent = boxes[:, :2].flip(1), boxes[:, 2:].flip(1)  # x before y, as grid_sample has it
    scale = extent / whole
    theta = torch.diag_embed(scale * torch.stack((sign, torch.ones_like(sign)), dim=1))
    theta = torch.cat((theta, ((2 * start + extent) / whole - 1)[:, :, None]), dim=2)
    grid = F.affine_grid(theta, [batch, channels, *size], align_corners=False)
    # the centres of the box's outer pixels: beyond them its edge is repeated, not its surroundings shown
    lowest = (2 * start + 1) / whole - 1
    highest = (2 * (start + extent) - 1) / whole - 1
    grid = grid.clamp(lowest[:, None, None], highest[:, None, None])
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def mirror(images: Tensor) -> Tensor:
    """Mirror images left to right, of any type: torch 2.11 flips no unsigned 16 bits."""
    return images.view(torch.int16).flip(-1).view(images.dtype) if images.dtype == torch.uint16 else images.flip(-1)
