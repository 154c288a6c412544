"""What features are worth: nearest neighbours, linear and few-shot probes, fine-tuning, and dense transfer."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.evaluation.classifier import Classifier
    from ssl_blocks.evaluation.compare import Scores, score_features
    from ssl_blocks.evaluation.dense import (
        evaluate_segmentation,
        segmentation_loss,
        train_segmentation,
    )
    from ssl_blocks.evaluation.detection import mask_rcnn
    from ssl_blocks.evaluation.extract import Extractor, RawPixels
    from ssl_blocks.evaluation.features import FeatureError
    from ssl_blocks.evaluation.fewshot import ProbeScore, fewshot_finetune, fewshot_probe
    from ssl_blocks.evaluation.finetune import (
        Finetuned,
        FinetuneScore,
        classifier_accuracy,
        finetune_encoder,
        make_classifier,
    )
    from ssl_blocks.evaluation.knn import knn_accuracy
    from ssl_blocks.evaluation.labelled import Labelled
    from ssl_blocks.evaluation.layers import layer_ids, set_drop_path
    from ssl_blocks.evaluation.linear import augmented_linear_probe, linear_probe
    from ssl_blocks.evaluation.logistic import logistic_probe
    from ssl_blocks.evaluation.overlap import SegmentationScores, majority_baseline, score_segmentation
    from ssl_blocks.evaluation.protocol import Protocol, Score
    from ssl_blocks.evaluation.protocols import PROTOCOLS
    from ssl_blocks.evaluation.protocols.finetune import FinetuneSettings
    from ssl_blocks.evaluation.protocols.probe import LinearSettings
    from ssl_blocks.evaluation.protocols.segment import SegmentationTraining
    from ssl_blocks.evaluation.pyramid import FeaturePyramid
    from ssl_blocks.evaluation.saved import Loaded, load_classifier, load_segmenter, save_classifier, save_segmenter
    from ssl_blocks.evaluation.segmentation import SegmentationModel, UPerHead
    from ssl_blocks.evaluation.subject import Subject, find_subject
    from ssl_blocks.evaluation.sweep import SweepScore
else:
    __getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "PROTOCOLS",
    "Classifier",
    "Extractor",
    "FeatureError",
    "FeaturePyramid",
    "FinetuneScore",
    "FinetuneSettings",
    "Finetuned",
    "Labelled",
    "LinearSettings",
    "Loaded",
    "ProbeScore",
    "Protocol",
    "RawPixels",
    "Score",
    "Scores",
    "SegmentationModel",
    "SegmentationScores",
    "SegmentationTraining",
    "Subject",
    "SweepScore",
    "UPerHead",
    "augmented_linear_probe",
    "classifier_accuracy",
    "evaluate_segmentation",
    "fewshot_finetune",
    "fewshot_probe",
    "find_subject",
    "finetune_encoder",
    "knn_accuracy",
    "layer_ids",
    "linear_probe",
    "load_classifier",
    "load_segmenter",
    "logistic_probe",
    "majority_baseline",
    "make_classifier",
    "mask_rcnn",
    "save_classifier",
    "save_segmenter",
    "score_features",
    "score_segmentation",
    "segmentation_loss",
    "set_drop_path",
    "train_segmentation",
]
