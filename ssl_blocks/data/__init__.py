"""Images by name, in memory or in files, and their augmentation in batches on any device."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.data.adapters import (
        ArrayImages as ArrayImages,
        CsvFiles as CsvFiles,
        DatasetImages as DatasetImages,
    )
    from ssl_blocks.data.augment import (
        RandomResizedCropFlip as RandomResizedCropFlip,
        denormalize as denormalize,
        to_float as to_float,
    )
    from ssl_blocks.data.files import UnreadableImageError as UnreadableImageError
    from ssl_blocks.data.finding import find_images as find_images
    from ssl_blocks.data.hugging_face import HuggingFaceImages as HuggingFaceImages
    from ssl_blocks.data.loader import (
        RunSampler as RunSampler,
        share_of_cores as share_of_cores,
        train_loader as train_loader,
    )
    from ssl_blocks.data.multicrop import ColorChanges as ColorChanges, MultiCrop as MultiCrop
    from ssl_blocks.data.pairs import (
        ImageMaskFiles as ImageMaskFiles,
        MaskedImages as MaskedImages,
        SegmentationData as SegmentationData,
        load_segmentation as load_segmentation,
        mask_folder as mask_folder,
        voc_images as voc_images,
    )
    from ssl_blocks.data.protocol import Augmentation as Augmentation, Source as Source
    from ssl_blocks.data.shapes import (
        SHAPE_CLASSES as SHAPE_CLASSES,
        ShapeImages as ShapeImages,
        ShapeScene as ShapeScene,
    )
    from ssl_blocks.data.sources import (
        IN_CODE as IN_CODE,
        find_shape as find_shape,
        load as load,
        register_source as register_source,
    )
    from ssl_blocks.data.splits import (
        FileSplit as FileSplit,
        ImageData as ImageData,
        ImageShape as ImageShape,
        ImageSplit as ImageSplit,
    )
    from ssl_blocks.data.streams import StreamImages as StreamImages
else:
    __getattr__, __dir__ = lazily(__name__, __file__)
