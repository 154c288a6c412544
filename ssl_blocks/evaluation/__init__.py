"""What features are worth: nearest neighbours, linear and few-shot probes, fine-tuning, and dense transfer."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.evaluation.attentive import AttentiveHead as AttentiveHead, attentive_probe as attentive_probe
    from ssl_blocks.evaluation.classifier import Classifier as Classifier
    from ssl_blocks.evaluation.compare import Scores as Scores, score_features as score_features
    from ssl_blocks.evaluation.dense import (
        evaluate_segmentation as evaluate_segmentation,
        segmentation_loss as segmentation_loss,
        train_segmentation as train_segmentation,
    )
    from ssl_blocks.evaluation.detection import mask_rcnn as mask_rcnn
    from ssl_blocks.evaluation.extract import (
        Extractor as Extractor,
        FeatureError as FeatureError,
        RawPixels as RawPixels,
    )
    from ssl_blocks.evaluation.fewshot import (
        ProbeScore as ProbeScore,
        fewshot_finetune as fewshot_finetune,
        fewshot_probe as fewshot_probe,
    )
    from ssl_blocks.evaluation.finetune import (
        Finetuned as Finetuned,
        FinetuneScore as FinetuneScore,
        classifier_accuracy as classifier_accuracy,
        finetune_encoder as finetune_encoder,
        make_classifier as make_classifier,
    )
    from ssl_blocks.evaluation.knn import knn_accuracy as knn_accuracy
    from ssl_blocks.evaluation.labelled import Labelled as Labelled
    from ssl_blocks.evaluation.layers import layer_ids as layer_ids, set_drop_path as set_drop_path
    from ssl_blocks.evaluation.linear import (
        augmented_linear_probe as augmented_linear_probe,
        linear_probe as linear_probe,
    )
    from ssl_blocks.evaluation.logistic import logistic_probe as logistic_probe
    from ssl_blocks.evaluation.overlap import (
        SegmentationScores as SegmentationScores,
        majority_baseline as majority_baseline,
        score_segmentation as score_segmentation,
    )
    from ssl_blocks.evaluation.pooling import AllPlaces as AllPlaces, PooledLayers as PooledLayers
    from ssl_blocks.evaluation.protocol import (
        CannotScoreError as CannotScoreError,
        Protocol as Protocol,
        Score as Score,
    )
    from ssl_blocks.evaluation.protocols import PROTOCOLS as PROTOCOLS
    from ssl_blocks.evaluation.protocols.attentive import AttentiveSettings as AttentiveSettings
    from ssl_blocks.evaluation.protocols.finetune import FinetuneSettings as FinetuneSettings
    from ssl_blocks.evaluation.protocols.probe import LinearSettings as LinearSettings
    from ssl_blocks.evaluation.protocols.segment import SegmentationTraining as SegmentationTraining
    from ssl_blocks.evaluation.pyramid import FeaturePyramid as FeaturePyramid
    from ssl_blocks.evaluation.quality import (
        FeatureQuality as FeatureQuality,
        alignment as alignment,
        alpha_req as alpha_req,
        effective_rank as effective_rank,
        feature_quality as feature_quality,
        rankme as rankme,
        spread as spread,
        uniformity as uniformity,
    )
    from ssl_blocks.evaluation.ridge import ridge_probe as ridge_probe
    from ssl_blocks.evaluation.saved import (
        Loaded as Loaded,
        load_classifier as load_classifier,
        load_segmenter as load_segmenter,
        save_classifier as save_classifier,
        save_segmenter as save_segmenter,
    )
    from ssl_blocks.evaluation.segmentation import SegmentationModel as SegmentationModel, UPerHead as UPerHead
    from ssl_blocks.evaluation.subject import Subject as Subject, find_subject as find_subject
    from ssl_blocks.evaluation.sweep import SweepScore as SweepScore
else:
    __getattr__, __dir__ = lazily(__name__, __file__)
