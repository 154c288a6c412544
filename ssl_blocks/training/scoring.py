"""What features are worth before and after a run: raw pixels, the untrained and the pretrained encoder."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ssl_blocks.data import ImageData, ImageSplit
from ssl_blocks.evaluation import Scores, encoder_features, raw_pixels, score_features
from ssl_blocks.objectives import ObjectiveModule

SHOTS = 10


def score_pixels(data: ImageData) -> list[Scores]:
    """Score normalised pixels as features; nothing where there are no labels."""
    return _score("raw pixels", data, partial(raw_pixels, mean=data.mean, std=data.std))


def score_encoder(
    name: str, objective: ObjectiveModule, data: ImageData, *, device: str, autocast_dtype: torch.dtype | None
) -> list[Scores]:
    """Score the features of an objective's encoder; nothing where there are no labels. It ends up on CPU."""
    encoder = objective.export_encoder()
    encode = partial(
        encoder_features,
        encoder,
        mean=data.mean,
        std=data.std,
        tokenizer=objective.tokenizer,
        device=device,
        autocast_dtype=autocast_dtype,
    )
    encoder.module.to(device)
    scores = _score(name, data, encode)
    encoder.module.to("cpu")
    return scores


def has_labels(data: ImageData) -> bool:
    """Whether both splits can be scored."""
    return data.train.labels is not None and data.test is not None and data.test.labels is not None


def _score(name: str, data: ImageData, encode: Callable[[Tensor], Tensor]) -> list[Scores]:
    train, test = data.train, data.test
    if not has_labels(data):
        return []
    assert isinstance(train, ImageSplit)
    assert isinstance(test, ImageSplit)
    assert train.labels is not None
    assert test.labels is not None
    return [score_features(name, encode(train.images), train.labels, encode(test.images), test.labels, shots=SHOTS)]
