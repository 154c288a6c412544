"""What features are worth: nearest neighbours, few-shot probes, and dense transfer."""

from ssl_blocks.evaluation.compare import Scores, raw_pixels, score_features
from ssl_blocks.evaluation.dense import (
    SegmentationTraining,
    evaluate_segmentation,
    segmentation_loss,
    train_segmentation,
)
from ssl_blocks.evaluation.detection import mask_rcnn
from ssl_blocks.evaluation.features import encoder_features, extract_features
from ssl_blocks.evaluation.knn import knn_accuracy
from ssl_blocks.evaluation.overlap import SegmentationScores, majority_baseline, score_segmentation
from ssl_blocks.evaluation.pairs import (
    ImageMaskFiles,
    MaskedImages,
    SegmentationData,
    load_segmentation,
    mask_folder,
    voc_images,
)
from ssl_blocks.evaluation.probe import ProbeScore, fewshot_probe
from ssl_blocks.evaluation.pyramid import FeaturePyramid
from ssl_blocks.evaluation.segmentation import SegmentationModel, UPerHead
from ssl_blocks.evaluation.shapes import SHAPE_CLASSES, ShapeImages, ShapeScene

__all__ = [
    "SHAPE_CLASSES",
    "FeaturePyramid",
    "ImageMaskFiles",
    "MaskedImages",
    "ProbeScore",
    "Scores",
    "SegmentationData",
    "SegmentationModel",
    "SegmentationScores",
    "SegmentationTraining",
    "ShapeImages",
    "ShapeScene",
    "UPerHead",
    "encoder_features",
    "evaluate_segmentation",
    "extract_features",
    "fewshot_probe",
    "knn_accuracy",
    "load_segmentation",
    "majority_baseline",
    "mask_folder",
    "mask_rcnn",
    "raw_pixels",
    "score_features",
    "score_segmentation",
    "segmentation_loss",
    "train_segmentation",
    "voc_images",
]
