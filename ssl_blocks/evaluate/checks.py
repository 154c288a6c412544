"""What would go wrong after minutes of work is looked at before."""

from collections.abc import Sequence

import torch

from ssl_blocks.data import ImageData
from ssl_blocks.encoders import TokenEncoder
from ssl_blocks.engine.settings import section
from ssl_blocks.evaluate.config import EvaluateConfig
from ssl_blocks.evaluate.rows import Setup
from ssl_blocks.evaluation import FeaturePyramid, make_classifier
from ssl_blocks.evaluation.checks import check_classes, labels_of
from ssl_blocks.evaluation.features import check_images
from ssl_blocks.evaluation.probe import draw_shots
from ssl_blocks.modes import modes_kept


def check_numbers(config: EvaluateConfig) -> None:
    """Refuse settings that no data can make right.

    Raises:
        ValueError: naming the protocol, the setting and what was expected.
    """
    for name, build in (
        ("probe", lambda: config.probe.settings(10_000, config.seed)),
        ("finetune", lambda: config.finetune.settings(config.seed)),
        ("segment", config.segment.training),
    ):
        with section(name):
            build()


def check_fit(setup: Setup, tasks: Sequence[str]) -> None:
    """Refuse an encoder that cannot take the images, and data that is too small for what is asked.

    Args:
        setup: encoder and data.
        tasks: the protocols.

    Raises:
        ValueError: naming what does not fit.
    """
    if "segment" in tasks:
        _check_segmentation(setup)
    if setup.data is not None:
        _check_classification(setup, setup.data, tasks)


def _check_segmentation(setup: Setup) -> None:
    subject = setup.subject
    if not isinstance(subject.encoder, TokenEncoder) or subject.tokenizer is not None:
        raise ValueError(
            f"segment needs an encoder of tokens that takes whole images, and {subject.name} "
            f"({type(subject.encoder).__name__}) is none"
        )
    with section("segment"):
        FeaturePyramid(subject.encoder, out_channels=setup.config.segment.width)


def _check_classification(setup: Setup, data: ImageData, tasks: Sequence[str]) -> None:
    config, encoder = setup.config, setup.subject.encoder
    tokenizer, blank = setup.subject.tokenizer, torch.zeros(1, *data.shape, dtype=torch.uint8)
    with modes_kept(encoder.module, training=False):
        check_images(encoder, blank, lambda x: encoder.features(x if tokenizer is None else tokenizer(x)))
    num_classes = _check_labels(data)
    assert data.train.labels is not None
    assert data.test is not None
    assert data.test.labels is not None
    if "knn" in tasks and config.knn.k > len(data.train):
        raise ValueError(f"knn.k={config.knn.k} must be at most the number of training images, {len(data.train)}")
    if "fewshot" in tasks:
        with section("fewshot"):
            draw_shots(data.train.labels, data.test.labels, config.fewshot.shots, torch.Generator().manual_seed(0))
    if "finetune" in tasks or ("fewshot" in tasks and config.fewshot.finetune):
        settings = config.finetune.settings(config.seed)
        with section("finetune"):
            model = make_classifier(encoder, num_classes=num_classes, settings=settings, tokenizer=tokenizer)
            model.parameter_groups(weight_decay=settings.weight_decay, layer_decay=settings.layer_decay)


def _check_labels(data: ImageData) -> int:
    """The number of classes."""
    assert data.test is not None
    with section("data"):
        num_classes = int(labels_of("train", data.train).max()) + 1
        check_classes("labels of test", labels_of("test", data.test), num_classes)
    return num_classes
