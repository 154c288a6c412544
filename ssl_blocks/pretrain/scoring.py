"""What features are worth before and after a run: raw pixels, the untrained and the pretrained encoder."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssl_blocks.data import ImageData, ImageSplit, to_float
from ssl_blocks.evaluation import Extractor, RawPixels, Scores, knn_accuracy, ridge_probe, score_features
from ssl_blocks.modes import modes_kept
from ssl_blocks.objectives import Objective

SHOTS, MEASURE_BATCH = 10, 256
LEAST_SCORED = 3000  # images, however short a run is
RESIDENT_BYTES = 2**30  # images that may stay on a GPU


@dataclass(frozen=True)
class Features:
    """Features of a sample ``[N, D]`` and their labels ``[N]``."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def knn(self, device: torch.device | str) -> float:
        """KNN accuracy, 0..1, of neighbours that are looked for on ``device``."""
        train, labels, test, truth = (x.to(device) for x in vars(self).values())
        return knn_accuracy(train, labels, test, truth, k=min(20, len(train)))

    def probe(self, device: torch.device | str) -> float:
        """Accuracy, 0..1, of a linear probe in closed form."""
        return ridge_probe(*(x.to(device) for x in vars(self).values()))

    def scores(self, name: str, device: torch.device | str) -> Scores:
        """The same and a few-shot probe."""
        return score_features(name, *vars(self).values(), shots=SHOTS, device=device)


class Sample:
    """Labelled images of both splits, in memory, which features are made of again and again.

    Those that went to a GPU stay there, unless they are many.
    """

    def __init__(self, data: ImageData, *, autocast_dtype: torch.dtype | None) -> None:
        assert isinstance(data.train, ImageSplit)
        assert isinstance(data.test, ImageSplit)
        self.data, self.autocast_dtype = data, autocast_dtype
        self.train, self.test = data.train, data.test
        self._parts: dict[tuple[int, int], Sample] = {}

    def __str__(self) -> str:
        return f"{len(self.train):,} training and {len(self.test):,} test images"

    def part(self, num_train: int, num_test: int) -> "Sample":
        """At most so many images, drawn class by class: the same object for the same numbers."""
        size = min(num_train, len(self.train)), min(num_test, len(self.test))
        if size == (len(self.train), len(self.test)):
            return self
        if size not in self._parts:
            self._parts[size] = Sample(self.data.sample(*size), autocast_dtype=self.autocast_dtype)
        return self._parts[size]

    def of_pixels(self) -> Features:
        """Normalised pixels as features."""
        pixels = RawPixels(channels=self.data.shape.channels, size=self.data.shape[1:])
        return self._extract(Extractor(pixels, self.data.mean, self.data.std))

    def of_encoder(self, objective: Objective, device: torch.device | str) -> Features:
        """Features of an objective's encoder as it stands; it stays on ``device``."""
        if self.train.images.nbytes + self.test.images.nbytes <= RESIDENT_BYTES:
            self.train, self.test = (
                replace(split, images=split.images.to(device)) for split in (self.train, self.test)
            )
        place = (device, self.autocast_dtype)
        encoder = objective.export_encoder()
        return self._extract(Extractor(encoder, self.data.mean, self.data.std, objective.tokenizer, *place))

    def _extract(self, encode: Extractor) -> Features:
        assert self.train.labels is not None
        assert self.test.labels is not None
        return Features(encode(self.train.images), self.train.labels, encode(self.test.images), self.test.labels)


def num_scored(sample: "Sample", bank: int | None, *, images_seen: int) -> tuple[int, int]:
    """How many training and test images scores look at.

    An image that is scored, before training and again after it, costs about half of one that is trained on. ``bank`` is
    a number of training images; ``None``: all, and all test images, unless that would take more than about 5 % of a
    run, in which ``images_seen`` are trained on, each as often as it is seen.
    """
    num_train, num_test = len(sample.train), len(sample.test)
    most = max(LEAST_SCORED, images_seen // 10)
    if bank is not None:
        return min(bank, num_train), num_test
    if num_train + num_test <= most:
        return num_train, num_test
    few_test = min(num_test, max(most // 3, most - num_train))
    return min(num_train, most - few_test), few_test


@torch.no_grad()
def measure_objective(
    objective: Objective, data: ImageData, *, device: str, autocast_dtype: torch.dtype | None
) -> dict[str, float]:
    """Average what an objective measures of itself over test images in memory; nothing where there are none.

    Its modes are left as they were, and it ends up on CPU.
    """
    if data.test is None:
        return {}
    assert isinstance(data.test, ImageSplit)
    sums: dict[str, Tensor | float] = {}
    objective.to(device)
    with modes_kept(objective, training=False), torch.autocast(device, autocast_dtype, autocast_dtype is not None):
        for start in range(0, len(data.test), MEASURE_BATCH):
            batch = data.test.images[start : start + MEASURE_BATCH]
            found = objective.measure(to_float(batch.to(device), data.mean, data.std))
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + torch.as_tensor(value).double() * len(batch)
    objective.to("cpu")
    return {name: float(total) / len(data.test) for name, total in sums.items()}


def has_labels(data: ImageData) -> bool:
    """Whether both splits can be scored."""
    return data.train.labels is not None and data.test is not None and data.test.labels is not None
