"""A segmentation head over a feature pyramid."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ssl_blocks.bounds import Classes, Count, Width
from ssl_blocks.data.pairs import IGNORED
from ssl_blocks.doors import checked
from ssl_blocks.evaluation.pyramid import FeaturePyramid

BINS = (1, 2, 3, 6)


@checked
class UPerHead(nn.Module):
    """Classify every pixel of the finest map, having seen all maps.

    UPerNet (Xiao et al. 2018, Sec. 3.2), as RandSAC's appendix B uses it, but small: the coarsest map is pooled to
    1x1, 2x2, 3x3 and 6x6 and joined with the results; the finer ones get a 1x1 convolution each; a path from coarse
    to fine adds each to the next; all are enlarged to the finest, joined and classified. Norms are over channels, so
    that nothing depends on the other images of a batch.

    Args:
        in_channels: width of every map.
        num_classes: classes, background included if it is one.
        width: of the head itself; ``None`` takes that of the maps.
        num_levels: number of maps.

    Raises:
        ValueError: if a number is below 1, or the classes are more than 255.

    Examples:
        >>> maps = {str(i): torch.zeros(1, 8, size, size) for i, size in enumerate((16, 8, 4, 2))}
        >>> UPerHead(in_channels=8, num_classes=3)(maps).shape
        torch.Size([1, 3, 16, 16])
    """

    def __init__(
        self, *, in_channels: Width, num_classes: Classes, width: Width | None = None, num_levels: Count = 4
    ) -> None:
        super().__init__()
        width = in_channels if width is None else width
        if not 1 <= num_classes <= IGNORED:
            raise ValueError(f"num_classes={num_classes} must be within 1..{IGNORED}: {IGNORED} marks ignored pixels")
        self.num_classes = num_classes
        self.pools = nn.ModuleList(_Pool(bins, in_channels, width) for bins in BINS)
        self.coarsest = _convolve(in_channels + len(BINS) * width, width, kernel=3)
        self.laterals = nn.ModuleList(_convolve(in_channels, width, kernel=1) for _ in range(num_levels - 1))
        self.smooths = nn.ModuleList(_convolve(width, width, kernel=3) for _ in range(num_levels - 1))
        self.fuse = _convolve(num_levels * width, width, kernel=3)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Mapping[str, Tensor]) -> Float[Tensor, "b k h w"]:
        """Turn maps ``[B, in_channels, height, width]``, fine to coarse, into logits of the finest one's size.

        Raises:
            ValueError: if the maps are more or fewer than the head was built for.
        """
        *finer, last = maps.values()
        if len(finer) != len(self.laterals):
            raise ValueError(f"maps={list(maps)} must be {len(self.laterals) + 1}, as the head was built for")
        path = [self.coarsest(torch.cat([last, *(pool(last) for pool in self.pools)], dim=1))]
        for lateral, level in zip(reversed(self.laterals), reversed(finer), strict=True):
            path.insert(0, lateral(level) + resize_map(path[0], level.shape[-2:]))
        smooth = [part(level) for part, level in zip(self.smooths, path, strict=False)] + path[-1:]
        joined = torch.cat([resize_map(level, path[0].shape[-2:]) for level in smooth], dim=1)
        logits: Tensor = self.classify(self.fuse(joined))
        return logits


@checked
class SegmentationModel(nn.Module):
    """A pyramid, which makes maps, and a head, which classifies them: images in, one logit per class and pixel out.

    Examples:
        >>> from ssl_blocks.encoders import timm_vit
        >>> encoder = timm_vit(image_size=16, patch_size=4, depth=4, embed_dim=32, num_heads=2)
        >>> head = UPerHead(in_channels=8, num_classes=3)
        >>> SegmentationModel(FeaturePyramid(encoder, out_channels=8), head)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(self, pyramid: FeaturePyramid, head: UPerHead) -> None:
        super().__init__()
        self.pyramid, self.head = pyramid, head

    @property
    def num_classes(self) -> int:
        """Classes that the head tells apart."""
        return self.head.num_classes

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits ``[B, K, H, W]`` of normalised images ``[B, C, H, W]``, enlarged to their size.

        Raises:
            ValueError: if the images are not of the encoder's size.
        """
        return resize_map(self.head(self.pyramid(images)), images.shape[-2:])

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare."""
        return {f"pyramid.{name}" for name in self.pyramid.no_weight_decay()}


class _Pool(nn.Module):
    """A map's averages in ``bins x bins`` cells, laid over the map again."""

    def __init__(self, bins: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.bins, self.project = bins, _convolve(in_channels, width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return resize_map(self.project(F.adaptive_avg_pool2d(x, self.bins)), x.shape[-2:])


def resize_map(x: Float[Tensor, "b c h w"], size: Sequence[int]) -> Float[Tensor, "b c p q"]:
    """Interpolate a map bilinearly to height and width ``size``."""
    return F.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=False)


def _convolve(in_channels: int, width: int, *, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, kernel, padding=kernel // 2, bias=False), LayerNorm2d(width), nn.ReLU()
    )
