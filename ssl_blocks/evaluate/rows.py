"""Features, and what each protocol makes of them: one row of the table for each kind of features."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssl_blocks.data import FileSplit, ImageData
from ssl_blocks.encoders import FeatureEncoder, TokenEncoder
from ssl_blocks.evaluate.config import EvaluateConfig
from ssl_blocks.evaluate.processes import Share
from ssl_blocks.evaluate.subject import Subject
from ssl_blocks.evaluation import (
    SegmentationData,
    augmented_linear_probe,
    encoder_features,
    evaluate_segmentation,
    fewshot_finetune,
    fewshot_probe,
    finetune_encoder,
    knn_accuracy,
    linear_probe,
    load_segmentation,
    logistic_probe,
    majority_baseline,
    raw_pixels,
)

FROZEN = ("knn", "probe", "fewshot")  # they ask of features alone
TASKS = (*FROZEN, "finetune", "segment")
CHUNK = 2048  # images that are decoded at a time
MOST_PIXEL_VALUES = 2**30  # 4 GiB in single precision
HALF = 0.5


@dataclass
class Row:
    """What one kind of features is worth, by protocol."""

    name: str
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Setup:
    """What is evaluated, on what, and where.

    Args:
        subject: the encoder.
        data: labelled images of its size; ``None`` where no protocol needs any.
        config: options of the protocols.
        device: where it is computed.
        autocast_dtype: precision of encoders under autocast; ``None`` switches autocast off.
        say: tells the user what is being done, or left out.
        masks: images with masks; ``None`` where there is no segmentation.
        share: which images are this process's, where several share the work.
    """

    subject: Subject
    data: ImageData | None
    config: EvaluateConfig
    device: str
    autocast_dtype: torch.dtype | None
    say: Callable[[str], None]
    masks: SegmentationData | None = None
    share: Share = field(default_factory=Share)

    @property
    def images(self) -> ImageData:
        """The labelled images, which are there."""
        assert self.data is not None
        return self.data

    @property
    def statistics(self) -> dict[str, tuple[float, ...]]:
        """Mean and deviation per channel: those of the encoder, else those of the data."""
        own, neutral = self.subject, (HALF,) * self.subject.encoder.channels
        mean, std = (neutral, neutral) if self.data is None else (self.data.mean, self.data.std)
        return {"mean": own.mean or mean, "std": own.std or std}

    @property
    def options(self) -> dict[str, Any]:
        """How images go into the encoder."""
        place = {"device": self.device, "autocast_dtype": self.autocast_dtype}
        return {**self.statistics, "tokenizer": self.subject.tokenizer, **place}

    def with_random(self, wanted: bool) -> list[tuple[str, FeatureEncoder]]:
        """The encoder, and before it the same with random weights where that is wanted and can be had."""
        encoders = [(self.subject.name, self.subject.encoder)]
        if wanted and self.subject.fresh is None:
            self.say("random weights are left out: how to build this encoder anew is not known")
        elif wanted and self.subject.fresh is not None:
            encoders.insert(0, ("random encoder", self.subject.fresh(self.config.seed)))
        return encoders


@dataclass(frozen=True)
class Labelled:
    """Features and labels of both splits."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def frozen_rows(setup: Setup, tasks: Sequence[str]) -> list[Row]:
    """Score frozen features, beside raw pixels and the same encoder with random weights.

    Args:
        setup: what is evaluated.
        tasks: some of ``FROZEN``.
    """
    rows = []
    if setup.config.pixels and _pixels_fit(setup):
        features = _labelled(setup, lambda images: raw_pixels(images, **setup.statistics))
        rows.append(_score(setup, "raw pixels", features, tasks))
    for name, encoder in setup.with_random(setup.config.random):
        rows.append(_score_encoder(setup, name, encoder, tasks))
    return rows


def _pixels_fit(setup: Setup) -> bool:
    data = setup.images
    assert data.test is not None
    values = (len(data.train) + len(data.test)) * math.prod(data.shape)
    if values > MOST_PIXEL_VALUES:
        setup.say(f"raw pixels are left out: {values:,} values would fill the memory")
    return values <= MOST_PIXEL_VALUES


def _score_encoder(setup: Setup, name: str, encoder: FeatureEncoder, tasks: Sequence[str]) -> Row:
    encoder.module.to(setup.device)
    setup.say(f"{name}: features")
    features = _labelled(setup, lambda images: encoder_features(encoder, images, **setup.options))
    augmented = "probe" in tasks and setup.config.probe.augment
    row = _score(setup, name, features, [task for task in tasks if not (augmented and task == "probe")])
    if augmented:
        setup.say(f"{name}: probe on augmented images")
        data, settings = setup.images, setup.config.probe.settings(len(setup.images.train), setup.config.seed)
        assert data.test is not None
        score = augmented_linear_probe(
            encoder, data.train, data.test, settings=settings, progress=True, **setup.options
        )
        row.scores["probe"] = score.as_dict()
    encoder.module.to("cpu")
    return row


def _labelled(setup: Setup, encode: Callable[[Tensor], Tensor]) -> Labelled:
    data, parts = setup.images, []
    assert data.test is not None
    for split in (data.train, data.test):
        assert split.labels is not None
        places = setup.share.of(len(split))
        chunks = torch.split(places, CHUNK) if isinstance(split, FileSplit) else (places,)
        parts += [torch.cat([encode(split.read(index)) for index in chunks]), split.labels[places]]
    return Labelled(*parts)


def _score(setup: Setup, name: str, features: Labelled, tasks: Sequence[str]) -> Row:
    row = Row(name)
    arguments = (features.train, features.train_labels, features.test, features.test_labels)
    for task in tasks:
        setup.say(f"{name}: {task}")
        started = time.perf_counter()
        score = _protocol(setup, task, arguments)
        row.scores[task] = score | {"seconds": round(time.perf_counter() - started, 2)}
    return row


def _protocol(setup: Setup, task: str, arguments: tuple[Tensor, ...]) -> dict[str, Any]:
    config, device = setup.config, setup.device
    if task == "knn":
        on_device, shared = [x.to(device) for x in arguments], setup.share.world > 1
        found = knn_accuracy(
            *on_device,
            k=config.knn.k,
            temperature=config.knn.temperature,
            bank_sharded=shared,
            queries_sharded=shared,
        )
        return {"accuracy": found}
    if task == "fewshot":
        shots, seeds = config.fewshot.shots, config.fewshot.seeds
        return fewshot_probe(*arguments, shots=shots, seeds=seeds).as_dict() | {"shots": shots}
    if config.probe.solver == "logistic":
        return logistic_probe(*arguments, cs=config.probe.cs, seed=config.seed, device=device).as_dict()
    settings = config.probe.settings(len(arguments[0]), config.seed)
    return linear_probe(*arguments, settings=settings, device=device).as_dict()


def finetuned_rows(setup: Setup, tasks: Sequence[str]) -> list[Row]:
    """Fine-tune on all labels (``finetune``) or on few (``fewshot``); from random weights, too, where it is asked.

    Args:
        setup: what is evaluated.
        tasks: some of the two.
    """
    rows, config, data = [], setup.config, setup.images
    settings = config.finetune.settings(config.seed)
    assert data.test is not None
    for name, encoder in setup.with_random(config.finetune.from_random):
        row = Row(name)
        if "finetune" in tasks:
            setup.say(f"{name}: finetune, {settings.epochs} epochs")
            done = finetune_encoder(encoder, data.train, data.test, settings=settings, progress=True, **setup.options)
            row.scores["finetune"] = done.score.as_dict()
        if "fewshot" in tasks:
            shots, seeds = config.fewshot.shots, config.fewshot.seeds
            setup.say(f"{name}: finetune on {shots} labels a class")
            few = fewshot_finetune(
                encoder, data.train, data.test, shots=shots, seeds=seeds, settings=settings, **setup.options
            )
            row.scores["fewshot_finetune"] = few.as_dict() | {"shots": shots}
        rows.append(row)
    return rows


def load_masks(setup: Setup) -> SegmentationData:
    """Images of the encoder's size, and their masks.

    Raises:
        ValueError: if data and encoder do not fit together.
        FileNotFoundError: if the data is not there.
    """
    subject, config = setup.subject, setup.config
    assert subject.image_size is not None
    return load_segmentation(
        config.segment.data,
        image_size=subject.image_size,
        num_classes=config.segment.num_classes,
        channels=subject.encoder.channels,
        root=config.data.root,
        seed=config.seed,
    )


def segmented_rows(setup: Setup) -> list[Row]:
    """Train a pyramid and a head for segmentation, and score the most frequent class beside it."""
    config, settings, data = setup.config, setup.config.segment, setup.masks
    assert data is not None
    rows = [Row("most frequent class", {"segment": majority_baseline(data).as_dict()})]
    for name, encoder in setup.with_random(settings.from_random):
        setup.say(f"{name}: segment, {settings.epochs} epochs")
        assert isinstance(encoder, TokenEncoder)
        scores = evaluate_segmentation(
            encoder,
            data=data,
            **setup.statistics,
            freeze=settings.freeze,
            width=settings.width,
            training=settings.training(),
            seed=config.seed,
            device=setup.device,
            autocast_dtype=setup.autocast_dtype,
        )
        rows.append(Row(name, {"segment": scores.as_dict()}))
    return rows


def merge_rows(rows: Iterable[Row]) -> list[Row]:
    """Put scores of one name into one row, in the order in which names come first."""
    merged: dict[str, Row] = {}
    for row in rows:
        merged.setdefault(row.name, Row(row.name)).scores.update(row.scores)
    return list(merged.values())
