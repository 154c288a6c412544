"""Images by name, in memory or in files, and their augmentation in batches on any device."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.data.augment import RandomResizedCropFlip, denormalize, to_float
    from ssl_blocks.data.files import UnreadableImageError
    from ssl_blocks.data.loader import RunSampler, share_of_cores, train_loader
    from ssl_blocks.data.multicrop import ColorChanges, MultiCrop
    from ssl_blocks.data.pairs import (
        ImageMaskFiles,
        MaskedImages,
        SegmentationData,
        load_segmentation,
        mask_folder,
        voc_images,
    )
    from ssl_blocks.data.protocol import Augmentation
    from ssl_blocks.data.shapes import SHAPE_CLASSES, ShapeImages, ShapeScene
    from ssl_blocks.data.sources import find_shape, load
    from ssl_blocks.data.splits import FileSplit, ImageData, ImageShape, ImageSplit
else:
    __getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "SHAPE_CLASSES",
    "Augmentation",
    "ColorChanges",
    "FileSplit",
    "ImageData",
    "ImageMaskFiles",
    "ImageShape",
    "ImageSplit",
    "MaskedImages",
    "MultiCrop",
    "RandomResizedCropFlip",
    "RunSampler",
    "SegmentationData",
    "ShapeImages",
    "ShapeScene",
    "UnreadableImageError",
    "denormalize",
    "find_shape",
    "load",
    "load_segmentation",
    "mask_folder",
    "share_of_cores",
    "to_float",
    "train_loader",
    "voc_images",
]
