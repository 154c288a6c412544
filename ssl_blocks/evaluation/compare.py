"""Scores of several feature extractors beside each other."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.bounds import Count
from ssl_blocks.doors import checked
from ssl_blocks.evaluation.fewshot import ProbeScore, fewshot_probe
from ssl_blocks.evaluation.knn import knn_accuracy
from ssl_blocks.evaluation.protocol import Result


@checked
@dataclass(frozen=True)
class Scores(Result):
    """What one kind of features is worth.

    Args:
        name: what the features are.
        knn: accuracy of nearest neighbours with all training labels, 0..1.
        fewshot: accuracy of a linear probe on few labels per class; ``None`` where a class has too few.
        shots: labels per class of that probe.
        num_train: training images that neighbours and labels come from.
        num_test: test images that are classified.
    """

    name: str
    knn: float
    fewshot: ProbeScore | None
    shots: Count
    num_train: int
    num_test: int


@checked
def score_features(
    name: str,
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    *,
    shots: Count = 10,
    device: torch.device | str = "cpu",
) -> Scores:
    """Score features of training and test images, ``[N, D]`` and ``[M, D]``, by kNN and a few-shot probe.

    kNN looks at 20 neighbours, or at all where the training set has fewer; they are looked for on ``device``.
    """
    there = [x.to(device) for x in (train, train_labels, test, test_labels)]
    knn = knn_accuracy(*there, k=min(20, len(train)))
    enough = int(train_labels.bincount().min()) >= shots
    probe = fewshot_probe(train, train_labels, test, test_labels, shots=shots) if enough else None
    return Scores(name, knn, probe, shots, num_train=len(train), num_test=len(test))
