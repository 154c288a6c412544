"""Augmentation and normalisation of whole batches, on the device where they are."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt
from torch import Tensor

from ssl_blocks.bounds import Pixels, Positive
from ssl_blocks.constants import constant
from ssl_blocks.data.files import Box
from ssl_blocks.data.resample import resample
from ssl_blocks.doors import checked
from ssl_blocks.modes import full_precision
from ssl_blocks.randomness import check_generator

NUM_ATTEMPTS = 10
HIGHEST = {torch.uint8: 255, torch.uint16: 65535}  # what is 1 on the 0..1 scale


@checked
class RandomResizedCropFlip:
    """Cut a random box out of every image, resize it, and mirror it half of the time.

    The boxes follow torchvision's ``RandomResizedCrop``: whole pixels, area and log ratio uniform, the first
    of ten draws that lies inside the image, else the largest centred box of an allowed ratio. Bilinear,
    with antialiasing where a box is larger than ``size``.

    Args:
        size: height and width of the result in pixels; one number means a square.
        scale: smallest and largest area of the box, as a share of the image.
        ratio: smallest and largest width / height of the box.
        flip: whether half of the images are mirrored left to right.

    Raises:
        ValueError: if a size is below 1, or a range is not ascending (scale: within (0, 1]; ratio: above 0).

    Examples:
        >>> crop = RandomResizedCropFlip(4, scale=(0.5, 1.0))
        >>> crop(torch.rand(2, 3, 8, 6), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 4, 4])
    """

    def __init__(
        self,
        size: Pixels | tuple[Pixels, Pixels],
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.scale, self.ratio, self.flip = scale, ratio, flip
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale={scale} must be (smallest, largest) share of the area, within (0, 1]")
        if not 0 < ratio[0] <= ratio[1] < math.inf:
            raise ValueError(f"ratio={ratio} must be (smallest, largest) width / height, both above 0")

    def __call__(
        self, images: Float[Tensor, "b c h w"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c p q"]:
        """Augment a batch, every image with a box of its own.

        Args:
            images: ``[B, C, H, W]``, floating point.
            generator: source of randomness on the images' device; ``None`` uses torch's default.

        Returns:
            ``[B, C, height, width]`` of ``size``, in the images' dtype.

        Raises:
            TypeError: if the images are not floating point.
            ValueError: if the generator is on another device.
        """
        check_generator(generator, images.device)
        batch, _, height, width = images.shape
        if self._keeps(height, width):
            return images.clone()
        boxes = self._draw_boxes(batch, height, width, generator, images.device)
        sign = torch.ones(batch, device=images.device)
        if self.flip:
            sign -= 2 * (torch.rand(batch, generator=generator, device=images.device) < 0.5).float()
        # half precision cannot name the pixels of a large image
        wide = images if images.dtype in (torch.float32, torch.float64) else images.float()
        with full_precision(images):  # affine_grid would round its product to 16 bits
            return resample(wide, boxes, sign, self.size).to(images.dtype)

    def file_crop(self, size: tuple[Pixels, Pixels]) -> "RandomResizedCropFlip":
        """This same crop: it resizes to ``self.size`` whatever the images' own ``size``."""
        return self

    def finish(
        self, images: Float[Tensor, "b c h w"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Leave images alone that were cropped out of files: nothing remains to be done."""
        return images

    def draw_box(self, height: int, width: int, *, generator: torch.Generator) -> Box:
        """Draw the box of one image on CPU, of the same distribution; in plain numbers, as workers draw one by one."""
        draws = torch.rand(4, NUM_ATTEMPTS, generator=generator).T.tolist()
        mirror = self.flip and torch.rand((), generator=generator).item() < 0.5
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for u_area, u_ratio, u_top, u_left in draws:
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * u_area)
            ratio = math.exp(low + (high - low) * u_ratio)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 1 <= w <= width and 1 <= h <= height:
                return Box(int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w, mirror)
        return Box(*self._central_box(height, width), mirror)

    def _keeps(self, height: int, width: int) -> bool:
        # known beforehand, and interpolation would only add rounding errors
        whole = self.scale == self.ratio == (1, 1) and height == width
        return whole and not self.flip and self.size == (height, width)

    def _draw_boxes(
        self, batch: int, height: int, width: int, generator: torch.Generator | None, device: torch.device
    ) -> Float[Tensor, "b 4"]:
        """Boxes as (top, left, height, width) in pixels."""
        u = torch.rand(4, batch, NUM_ATTEMPTS, generator=generator, device=device)
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * u[0])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = (low + (high - low) * u[1]).exp()
        w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
        first = fits.int().argmax(1, keepdim=True)  # argmax returns the first of equal values
        h, w, u_top, u_left = (x.gather(1, first)[:, 0] for x in (h, w, u[2], u[3]))
        # a draw just below 1 may be rounded up to the first place outside
        top = torch.minimum((u_top * (height - h + 1)).floor(), height - h)
        left = torch.minimum((u_left * (width - w + 1)).floor(), width - w)
        drawn = torch.stack((top, left, h, w), dim=1)
        central = constant(self._central_box(height, width), like=u)
        return torch.where(fits.any(1, keepdim=True), drawn, central)

    def _central_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The largest box in the middle whose ratio is allowed: one whole side, and what fits of the other."""
        h, w = height, width
        if width / height < self.ratio[0]:
            h = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            w = max(1, round(height * self.ratio[1]))
        return (height - h) // 2, (width - w) // 2, h, w


@checked
def to_float(images: UInt[Tensor, "b c *s"], mean: Sequence[float], std: Sequence[Positive]) -> Float[Tensor, "b c *s"]:
    """Normalise images ``[B, C, *sizes]`` to float32: scale to 0..1, subtract the mean, divide by the deviation.

    Args:
        images: uint8, or uint16 for images of more than 8 bits.
        mean: one number per channel on the 0..1 scale.
        std: the same, above 0.

    Raises:
        TypeError: if images are of another type: floating point ones have their scale already, see `normalize`.
        ValueError: if mean and std are not so.

    Examples:
        >>> to_float(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), mean=(0.5,), std=(0.5,))
        tensor([[[[-1.,  1.]]]])
    """
    if images.dtype not in HIGHEST:
        raise TypeError(f"images of {images.dtype} must be uint8 or uint16: for floats on the 0..1 scale see normalize")
    return normalize(images.float() / HIGHEST[images.dtype], mean, std)


@checked
def normalize(
    images: Float[Tensor, "b c *s"], mean: Sequence[float], std: Sequence[Positive]
) -> Float[Tensor, "b c *s"]:
    """Normalise images ``[B, C, H, W]`` of the 0..1 scale: subtract the mean, divide by the standard deviation.

    Mean and std are one number per channel, and std above 0; else it is a ``ValueError``.
    """
    center, spread = _per_channel(images, mean, std)
    return (images - center) / spread


@checked
def denormalize(
    images: Float[Tensor, "b c *s"], mean: Sequence[float], std: Sequence[Positive]
) -> Float[Tensor, "b c *s"]:
    """Undo the normalisation of `to_float`: images ``[B, C, H, W]`` on the 0..1 scale, not clamped.

    Mean, std and errors are as for `to_float`.

    Examples:
        >>> denormalize(torch.tensor([[[[-1.0, 1.0]]]]), mean=(0.5,), std=(0.5,))
        tensor([[[[0., 1.]]]])
    """
    center, spread = _per_channel(images, mean, std)
    return images * spread + center


def _per_channel(images: Tensor, mean: Sequence[float], std: Sequence[Positive]) -> tuple[Tensor, Tensor]:
    channels = images.shape[1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"{name}={tuple(values)} must be one number for each of {channels} channels")
    shape = (channels, *[1] * (images.ndim - 2))
    return constant(mean, like=images).reshape(shape), constant(std, like=images).reshape(shape)


def channel_statistics(images: UInt[Tensor, "n c *s"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of images of 8 or 16 bits per channel on the 0..1 scale; a constant channel's reads 1.

    Examples:
        >>> channel_statistics(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8))
        ((1.0,), (1.0,))
    """
    highest = HIGHEST[images.dtype]
    values = torch.arange(highest + 1, dtype=torch.float64) / highest
    histogram = torch.zeros(images.shape[1], highest + 1, dtype=torch.float64)
    for start in range(0, len(images), 256):  # in parts, as one channel of all images would be a large copy
        for channel, counts in enumerate(histogram):
            levels = images[start : start + 256, channel].flatten()
            counts += (levels if highest == 255 else levels.int()).bincount(minlength=highest + 1)
    share = histogram / histogram.sum(1, keepdim=True)
    mean = share @ values
    std = (share * (values - mean[:, None]).square()).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.where(std >= 1e-6, 1.0).tolist())
