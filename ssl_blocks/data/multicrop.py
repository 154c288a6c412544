"""Several crops of every image, in colours of their own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor

from ssl_blocks.bounds import Crops, Pixels, Positive, Share
from ssl_blocks.constants import constant
from ssl_blocks.data import colors
from ssl_blocks.data.augment import RandomResizedCropFlip, denormalize, normalize
from ssl_blocks.doors import checked
from ssl_blocks.modes import full_precision
from ssl_blocks.values import Views

BYTES_CPU = 2 << 20  # of views whose colours are changed together


@checked
@dataclass(frozen=True)
class ColorChanges:
    """How far and how often the colours of a view are changed; the defaults are DINO's.

    Saturation, hue and grey are for RGB images alone; images of other channels keep theirs.

    Args:
        jitter: share of the views whose brightness, contrast, saturation and hue are changed, in random order.
        brightness: factors are drawn from 1 - brightness to 1 + brightness.
        contrast: the same.
        saturation: the same.
        hue: shifts are drawn from -hue to hue; 1 is the full circle.
        grey: share of the views that are made grey.
        blur: share of the views that are blurred: of the first global one, the second, and the local ones.
        sigma: smallest and largest width of the blur in pixels, its standard deviation.
        solarize: share of the second global views whose bright half of values is inverted.

    Raises:
        ValueError: if a share lies outside [0, 1], or a strength or width outside its range.

    Examples:
        >>> ColorChanges(blur=(0.0, 0.0, 0.0)).solarize
        0.2
    """

    jitter: Share = 0.8
    brightness: Share = 0.4
    contrast: Share = 0.4
    saturation: Share = 0.2
    hue: Annotated[float, Ge(0), Le(0.5)] = 0.1
    grey: Share = 0.2
    blur: tuple[Share, Share, Share] = (1.0, 0.1, 0.5)
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: Share = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.sigma[0] <= self.sigma[1] < float("inf"):
            raise ValueError(f"sigma={self.sigma} must be (smallest, largest) width in pixels, both above 0")


@checked
class MultiCrop:
    """Two large and several small crops of every image, each in changed colours.

    Multi-crop of SwAV (Sec. 3.2) with the sizes and colours of DINO, on the images' device in whole batches; every
    image, view and choice has a draw of its own. The crops are those of `RandomResizedCropFlip`.

    Args:
        global_size: height and width of the two global views in pixels; one number means a square.
        local_size: the same of the local views.
        num_local: number of local views.
        mean: with which the images were normalised, one number per channel: colours are changed on the 0..1 scale.
        std: the same.
        global_scale: smallest and largest area of a global view, as a share of the image.
        local_scale: the same of the local views.
        flip: whether half of the views are mirrored left to right.
        colors: how colours are changed; ``None`` leaves them alone.

    Raises:
        ValueError: if a size is below 1, a number of views below 0, or a range of areas is none within (0, 1].

    Examples:
        >>> crops = MultiCrop(8, 4, num_local=3, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
        >>> views = crops(torch.randn(2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
        >>> views.num_global, [tuple(view.shape[2:]) for view in views.images]
        (2, [(8, 8), (8, 8), (4, 4), (4, 4), (4, 4)])
    """

    def __init__(
        self,
        global_size: Pixels | tuple[Pixels, Pixels],
        local_size: Pixels | tuple[Pixels, Pixels],
        *,
        num_local: Crops = 8,
        mean: Sequence[float],
        std: Sequence[Positive],
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        flip: bool = True,
        colors: ColorChanges | None = ColorChanges(),
    ) -> None:
        self.global_crop = _crop("global", global_size, global_scale, flip)
        self.local_crop = _crop("local", local_size, local_scale, flip)
        self.num_local, self.mean, self.std, self.colors = num_local, tuple(mean), tuple(std), colors

    def __call__(self, images: Float[Tensor, "b c h w"], *, generator: torch.Generator | None = None) -> Views:
        """Cut the views of a batch of normalised images, ``[B, C, H, W]`` floating point.

        Returns:
            Two global views, then the local ones, normalised again, in the images' dtype.

        Raises:
            TypeError: if the images are not floating point.
            ValueError: if the generator is not on the images' device, or mean and std are not one number per channel.
        """
        large = [self.global_crop(images, generator=generator) for _ in range(2)]
        small = [self.local_crop(images, generator=generator) for _ in range(self.num_local)]
        if self.colors is None:
            return Views((*large, *small), num_global=2)
        views: list[Tensor] = []
        for cuts in (large, small):
            # many on an accelerator, where launches count; so few on a CPU that they stay in its cache
            step = max(1, BYTES_CPU // (cuts[0].numel() * 4) if cuts and images.device.type == "cpu" else len(cuts))
            for start in range(0, len(cuts), step):
                views += self._recolor(cuts[start : start + step], len(views), generator)
        return Views(tuple(views), num_global=2)

    def file_crop(self, size: tuple[Pixels, Pixels]) -> RandomResizedCropFlip:
        """The largest centred part of a file's image that has the shape of ``size``, resized to it.

        Images held in memory are cut so, too, when they are loaded; all views are cut from this part. Where sides
        that differ from the shape of ``size`` by no more than a pixel allow it, the part may lie off by that pixel.
        """
        ratio = size[1] / size[0]
        return RandomResizedCropFlip(size, scale=(1.0, 1.0), ratio=(ratio, ratio), flip=False)

    def finish(self, images: Float[Tensor, "b c h w"], *, generator: torch.Generator | None = None) -> Views:
        """Cut the views: ``file_crop`` has done nothing of that."""
        return self(images, generator=generator)

    def _recolor(self, views: list[Tensor], first: int, generator: torch.Generator | None) -> Sequence[Tensor]:
        """Change the colours of views of one size, together; ``first`` is the number of the first."""
        assert self.colors is not None
        x = torch.cat(views)
        with full_precision(x):  # convolutions would blur in 16 bits
            x = denormalize(x.float(), self.mean, self.std).clamp(0, 1)
            x = _change(x, self.colors, range(first, first + len(views)), generator)
            return normalize(x, self.mean, self.std).to(views[0].dtype).chunk(len(views))


def _crop(kind: str, size: int | tuple[int, int], scale: tuple[float, float], flip: bool) -> RandomResizedCropFlip:
    try:
        return RandomResizedCropFlip(size, scale=scale, flip=flip)
    except ValueError as error:  # which begins with the argument's name
        raise ValueError(f"{kind}_{error}") from None


def _change(x: Tensor, how: ColorChanges, numbers: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """Jitter, grey, blur and solarize images of 0..1, in DINO's order: of these views, one after the other."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(len(x), *shape, generator=generator, device=x.device)

    def each(shares: tuple[float, ...]) -> Tensor:
        return constant(shares, like=x, dtype=x.dtype).repeat_interleave(len(x) // len(numbers))

    strengths = constant((how.brightness, how.contrast, how.saturation, how.hue), like=x, dtype=x.dtype)
    factors = (2 * draw(4) - 1) * strengths + constant((1, 1, 1, 0), like=x, dtype=x.dtype)
    jittered = colors.jitter(x, factors, draw(4).argsort(1))
    x = colors.choose(draw() < how.jitter, jittered, x)
    if x.shape[1] == 3:
        x = colors.choose(draw() < how.grey, colors.luminance(x), x)
    sigma = how.sigma[0] + (how.sigma[1] - how.sigma[0]) * draw()
    blurred = colors.gaussian_blur(x, sigma, radius=math.ceil(3 * how.sigma[1]))
    x = colors.choose(draw() < each(tuple(how.blur[min(number, 2)] for number in numbers)), blurred, x)
    if 1 in numbers:
        solarized = each(tuple(how.solarize * (number == 1) for number in numbers))
        x = colors.choose(draw() < solarized, colors.solarize(x), x)
    return x
