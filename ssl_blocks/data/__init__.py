"""Images by name, in memory, and their augmentation in batches on any device."""

from ssl_blocks.data.augment import RandomResizedCropFlip, denormalize, to_float
from ssl_blocks.data.memory import EpochBatches
from ssl_blocks.data.sources import ImageData, ImageShape, ImageSplit, load

__all__ = [
    "EpochBatches",
    "ImageData",
    "ImageShape",
    "ImageSplit",
    "RandomResizedCropFlip",
    "denormalize",
    "load",
    "to_float",
]
