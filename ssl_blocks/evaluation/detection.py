"""An encoder as the backbone of torchvision's Mask R-CNN."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssl_blocks.bounds import Classes, Positive
from ssl_blocks.doors import checked
from ssl_blocks.evaluation.pyramid import FeaturePyramid

if TYPE_CHECKING:
    from torchvision.models.detection import MaskRCNN


@checked
def mask_rcnn(
    pyramid: FeaturePyramid, *, num_classes: Classes, mean: Sequence[float], std: Sequence[Positive], **options: Any
) -> "MaskRCNN":
    """Build torchvision's Mask R-CNN on a feature pyramid (RandSAC, appendix B).

    Images of any size are resized to the encoder's, without regard to their shape, and boxes and masks with them.
    Anchors of eight strides and three shapes belong to each map.

    Args:
        pyramid: its encoder has square patches of 4, 8, 16, ... pixels and a grid of even sides: torchvision reads
            strides off the sizes of the maps, and would misplace boxes elsewhere.
        num_classes: classes, background (0) included.
        mean: one number per channel on the 0..1 scale; images are given unnormalised, as floats of 0..1.
        std: the same.
        **options: handed to ``torchvision.models.detection.MaskRCNN``, for example ``box_detections_per_img=20``.

    Raises:
        ValueError: if the patches or the grid are others, mean and std are not one number per channel, or
            ``num_classes`` is below 2.

    Examples:
        >>> import torch
        >>> from ssl_blocks.encoders import timm_vit
        >>> encoder = timm_vit(image_size=32, patch_size=4, depth=4, embed_dim=32, num_heads=2)
        >>> model = mask_rcnn(FeaturePyramid(encoder, out_channels=8), num_classes=4, mean=(0.5,) * 3, std=(0.25,) * 3)
        >>> sorted(model.eval()([torch.zeros(3, 40, 50)])[0])
        ['boxes', 'labels', 'masks', 'scores']
    """
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    patch, grid = pyramid.encoder.patch, pyramid.encoder.grid
    side = patch[0]
    if patch[0] != patch[1] or side < 4 or side & (side - 1):
        raise ValueError(f"patch={patch} of the encoder must be square, with a power of two from 4 on as side")
    if grid.height % 2 or grid.width % 2:
        raise ValueError(f"grid {grid} of the encoder must have even sides, for the coarsest map is half as large")
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} must be at least 2: background and one more")
    channels = pyramid.encoder.channels
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"{name}={tuple(values)} must be one number for each of {channels} channels")
    height, width = pyramid.image_size
    names = [str(i) for i in range(len(pyramid.strides))]
    arguments = {
        "image_mean": list(mean),
        "image_std": list(std),
        "fixed_size": (width, height),  # of torchvision's making: width first
        "size_divisible": 1,  # no padding: the encoder takes its own size only
        "rpn_anchor_generator": AnchorGenerator(
            sizes=tuple((int(8 * stride),) for stride, _ in pyramid.strides),
            aspect_ratios=((0.5, 1.0, 2.0),) * len(names),
        ),
        "box_roi_pool": MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        "mask_roi_pool": MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2),
    }
    return MaskRCNN(pyramid, num_classes, **(arguments | options))
