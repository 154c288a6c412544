"""What frozen features are worth: nearest neighbours and few-shot probes."""

from ssl_blocks.evaluation.compare import Scores, raw_pixels, score_features
from ssl_blocks.evaluation.features import encoder_features, extract_features
from ssl_blocks.evaluation.knn import knn_accuracy
from ssl_blocks.evaluation.probe import ProbeScore, fewshot_probe

__all__ = [
    "ProbeScore",
    "Scores",
    "encoder_features",
    "extract_features",
    "fewshot_probe",
    "knn_accuracy",
    "raw_pixels",
    "score_features",
]
