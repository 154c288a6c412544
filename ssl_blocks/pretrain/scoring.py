"""What features are worth before and after a run: raw pixels, the untrained and the pretrained encoder."""

import torch

from ssl_blocks.data import ImageData, ImageSplit, to_float
from ssl_blocks.evaluation import Extractor, RawPixels, Scores, score_features
from ssl_blocks.modes import modes_kept
from ssl_blocks.objectives import Objective

SHOTS, MEASURE_BATCH = 10, 256


def score_pixels(data: ImageData) -> list[Scores]:
    """Score normalised pixels as features; nothing where there are no labels."""
    pixels = RawPixels(channels=data.shape.channels, size=data.shape[1:])
    return _score("raw pixels", data, Extractor(pixels, data.mean, data.std))


def score_encoder(
    name: str, objective: Objective, data: ImageData, *, device: str, autocast_dtype: torch.dtype | None
) -> list[Scores]:
    """Score the features of an objective's encoder; nothing where there are no labels. It ends up on CPU."""
    encoder = objective.export_encoder()
    scores = _score(name, data, Extractor(encoder, data.mean, data.std, objective.tokenizer, device, autocast_dtype))
    encoder.module.to("cpu")
    return scores


@torch.no_grad()
def measure_objective(
    objective: Objective, data: ImageData, *, device: str, autocast_dtype: torch.dtype | None
) -> dict[str, float]:
    """Average what an objective measures of itself over the test images; nothing where there are none.

    Args:
        objective: its modes are left as they were, and it ends up on CPU.
        data: in memory.
        device: where to compute.
        autocast_dtype: precision under autocast; ``None`` switches autocast off.
    """
    if data.test is None:
        return {}
    assert isinstance(data.test, ImageSplit)
    sums: dict[str, float] = {}
    objective.to(device)
    with modes_kept(objective, training=False), torch.autocast(device, autocast_dtype, autocast_dtype is not None):
        for start in range(0, len(data.test), MEASURE_BATCH):
            batch = data.test.images[start : start + MEASURE_BATCH]
            found = objective.measure(to_float(batch.to(device), data.mean, data.std))
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
    objective.to("cpu")
    return {name: total / len(data.test) for name, total in sums.items()}


def has_labels(data: ImageData) -> bool:
    """Whether both splits can be scored."""
    return data.train.labels is not None and data.test is not None and data.test.labels is not None


def _score(name: str, data: ImageData, encode: Extractor) -> list[Scores]:
    train, test = data.train, data.test
    if not has_labels(data):
        return []
    assert isinstance(train, ImageSplit)
    assert isinstance(test, ImageSplit)
    assert train.labels is not None
    assert test.labels is not None
    return [score_features(name, encode(train.images), train.labels, encode(test.images), test.labels, shots=SHOTS)]
