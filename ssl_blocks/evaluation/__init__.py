"""What features are worth: nearest neighbours, linear and few-shot probes, and fine-tuning."""

from ssl_blocks.evaluation.classifier import Classifier
from ssl_blocks.evaluation.compare import Scores, raw_pixels, score_features
from ssl_blocks.evaluation.features import FeatureError, encoder_features, extract_features
from ssl_blocks.evaluation.fewshot import fewshot_finetune
from ssl_blocks.evaluation.finetune import (
    Finetuned,
    FinetuneScore,
    FinetuneSettings,
    classifier_accuracy,
    finetune_encoder,
    make_classifier,
)
from ssl_blocks.evaluation.knn import knn_accuracy
from ssl_blocks.evaluation.layers import LayeredEncoder, layer_ids, set_drop_path
from ssl_blocks.evaluation.linear import LinearSettings, augmented_linear_probe, linear_probe
from ssl_blocks.evaluation.logistic import logistic_probe
from ssl_blocks.evaluation.probe import ProbeScore, fewshot_probe
from ssl_blocks.evaluation.sweep import SweepScore

__all__ = [
    "Classifier",
    "FeatureError",
    "FinetuneScore",
    "FinetuneSettings",
    "Finetuned",
    "LayeredEncoder",
    "LinearSettings",
    "ProbeScore",
    "Scores",
    "SweepScore",
    "augmented_linear_probe",
    "classifier_accuracy",
    "encoder_features",
    "extract_features",
    "fewshot_finetune",
    "fewshot_probe",
    "finetune_encoder",
    "knn_accuracy",
    "layer_ids",
    "linear_probe",
    "logistic_probe",
    "make_classifier",
    "raw_pixels",
    "score_features",
    "set_drop_path",
]
