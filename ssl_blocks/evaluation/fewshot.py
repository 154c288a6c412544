"""Fine-tuning on a few labels per class."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ssl_blocks.data import FileSplit, ImageSplit
from ssl_blocks.encoders import FeatureEncoder
from ssl_blocks.evaluation.checks import labels_of
from ssl_blocks.evaluation.finetune import FinetuneSettings, finetune_encoder
from ssl_blocks.evaluation.probe import ProbeScore, draw_shots


def fewshot_finetune(
    encoder: FeatureEncoder,
    train: ImageSplit | FileSplit,
    test: ImageSplit | FileSplit,
    *,
    shots: int,
    seeds: Sequence[int] = (0, 1, 2),
    settings: FinetuneSettings | None = None,
    **options: Any,
) -> ProbeScore:
    """Fine-tune copies of an encoder on ``shots`` labels per class, once per seed: what APL asks of few labels.

    `fewshot_probe` does the same with frozen features, in seconds. The two draw the same labels from the same seed.

    Args:
        encoder: it is copied, and itself left as it is.
        train: images and labels, from which the labelled ones are drawn.
        test: images and labels.
        shots: labels per class.
        seeds: each draws labels of its own, and takes the place of ``settings.seed``.
        settings: ``None`` means RandSAC's; a step takes all images where there are fewer than its batch.
        **options: handed to `finetune_encoder`: ``mean``, ``std``, ``device`` and so on.

    Returns:
        Mean, standard deviation and single accuracies on the test images.

    Raises:
        ValueError: if there are no seeds, a class has fewer labels than ``shots``, or as `finetune_encoder`.
    """
    if shots < 1 or len(seeds) == 0:
        raise ValueError(f"shots={shots} must be at least 1, and seeds={tuple(seeds)} at least one")
    labels, test_labels = labels_of("train", train).cpu(), labels_of("test", test).cpu()
    accuracies = []
    for seed in seeds:
        chosen = draw_shots(labels, test_labels, shots, torch.Generator().manual_seed(seed))
        own = replace(settings or FinetuneSettings(), seed=seed)
        accuracies.append(finetune_encoder(encoder, train.take(chosen), test, settings=own, **options).score.accuracy)
    return ProbeScore(statistics.fmean(accuracies), statistics.pstdev(accuracies), tuple(accuracies))
