"""Changes of colour in whole batches, every image by an amount of its own; values lie in 0..1."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ssl_blocks.constants import constant

LUMINANCE = (0.2989, 0.587, 0.114)  # torchvision's


def luminance(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """How bright each pixel is: weighted for RGB, the plain mean of any other number of channels.

    Examples:
        >>> luminance(torch.ones(1, 2, 1, 1)).item()
        1.0
    """
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    weights = constant(LUMINANCE, like=images, dtype=images.dtype)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def blend(
    images: Float[Tensor, "b c h w"], others: Float[Tensor, "..."], factor: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Mix two batches: factor 1 keeps the images, 0 takes the others, above 1 leads away from them; clamped to 0..1."""
    share = factor[:, None, None, None]
    return (share * images + (1 - share) * others).clamp(0, 1)


def adjust_hue(images: Float[Tensor, "b 3 h w"], shift: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Turn the hue of every pixel, as in HSV, by a share of the full circle; 0 changes nothing.

    Examples:
        >>> red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None]
        >>> adjust_hue(red, torch.tensor([1 / 3])).flatten().round().tolist()  # green
        [0.0, 1.0, 0.0]
    """
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    by = torch.where(chroma > 0, chroma, 1)
    of_rest = torch.where(value == green, 2 + (blue - red) / by, 4 + (red - green) / by)
    sixths = torch.where(value == red, (green - blue) / by, of_rest) + 6 * shift[:, None, None]
    offsets = constant((5, 3, 1), like=images, dtype=images.dtype)
    place = (offsets[:, None, None] + sixths[:, None]).remainder(6)
    return value[:, None] - chroma[:, None] * torch.minimum(place, 4 - place).clamp(0, 1)


def gaussian_blur(
    images: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], *, radius: int
) -> Float[Tensor, "b c h w"]:
    """Blur every image by a Gaussian of its own standard deviation in pixels, above 0; edges are mirrored.

    It is cut off at the radius in pixels, of which at most one less than the images' sides is taken.
    """
    batch, channels, height, width = images.shape
    radius = min(radius, height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    weights = (-0.5 * (offsets / sigma[:, None].to(images.dtype)).square()).exp()
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    padded = F.pad(images, [radius] * 4, mode="reflect")
    x = padded.reshape(1, batch * channels, *padded.shape[2:])
    x = F.conv2d(x, weights[:, None, :, None], groups=batch * channels)
    x = F.conv2d(x, weights[:, None, None, :], groups=batch * channels)
    return x.reshape(images.shape)


def solarize(images: Float[Tensor, "b c h w"], threshold: float = 0.5) -> Float[Tensor, "b c h w"]:
    """Invert the values of at least ``threshold``.

    Examples:
        >>> solarize(torch.tensor([[[[0.25, 0.75]]]]))
        tensor([[[[0.2500, 0.2500]]]])
    """
    return torch.where(images >= threshold, 1 - images, images)


def jitter(images: Float[Tensor, "b c h w"], factors: Float[Tensor, "b 4"], order: Tensor) -> Float[Tensor, "b c h w"]:
    """Adjust brightness, contrast, saturation and hue, in an order of each image's own.

    Args:
        images: unless C is 3, saturation and hue are left alone.
        factors: ``[B, 4]`` of brightness, contrast and saturation, and the shift of the hue.
        order: ``[B, 4]`` int64 permutations: what is adjusted first (0 brightness .. 3 hue), second, ...
    """
    kinds = 4 if images.shape[1] == 3 else 2
    for kind_at in order.unbind(1):
        grey = luminance(images)
        kind = kind_at[:, None, None, None]
        # the three blends differ in what they blend with, so one of them does for all images
        others = torch.where(kind == 1, grey.mean((1, 2, 3), keepdim=True), torch.where(kind == 2, grey, 0.0))
        factor = factors.gather(1, kind_at[:, None])[:, 0]
        unchanged = kind >= min(kinds, 3)
        blended = torch.where(unchanged, images, blend(images, others, factor))
        images = torch.where(kind == 3, adjust_hue(images, factor), blended) if kinds == 4 else blended
    return images


def choose(mask: Bool[Tensor, " b"], changed: Tensor, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Take the changed image where the mask is set."""
    return torch.where(mask[:, None, None, None], changed, images)
