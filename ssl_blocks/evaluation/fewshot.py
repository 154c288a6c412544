"""What few labels per class are enough for: a linear probe of frozen features, and fine-tuning."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.bounds import Count, Positive, Seed
from ssl_blocks.doors import checked
from ssl_blocks.evaluation.checks import check_features
from ssl_blocks.evaluation.extract import Extractor
from ssl_blocks.evaluation.finetune import finetune_encoder
from ssl_blocks.evaluation.labelled import Labelled
from ssl_blocks.evaluation.logistic import classify
from ssl_blocks.evaluation.protocol import CannotScoreError, Result


@checked
@dataclass(frozen=True)
class ProbeScore(Result):
    """Accuracies, 0..1, of probes that differ in the labels drawn: one per seed, their mean and deviation.

    The deviation is of the population: 0 for a single seed.
    """

    mean: float
    std: float
    per_seed: tuple[float, ...]

    @classmethod
    def of(cls, accuracies: Sequence[float]) -> "ProbeScore":
        """Sum up one accuracy per seed."""
        return cls(statistics.fmean(accuracies), statistics.pstdev(accuracies), tuple(accuracies))


@checked
def fewshot_probe(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    *,
    shots: Count = 10,
    seeds: Sequence[Seed] = (0, 1, 2),
    c: Positive = 1.0,
    device: torch.device | str = "cpu",
) -> ProbeScore:
    """Fit a logistic regression on ``shots`` labels per class, once per seed: that of `logistic_probe`.

    Features are standardised with the statistics of the labelled ones.

    Args:
        train: ``[N, D]`` features, from which the labelled ones are drawn.
        train_labels: ``[N]`` class indices.
        test: ``[M, D]``.
        test_labels: ``[M]`` class indices.
        shots: labels per class.
        seeds: each draws labels of its own.
        c: inverse strength of the L2 penalty, scikit-learn's ``C``.
        device: where it is fitted, in float64.

    Raises:
        ValueError: if a number is out of range, there are no seeds, shapes do not fit together, features are not
            finite, fewer than two classes exist, or a class (of the test labels, too) has fewer labels than ``shots``.

    Examples:
        >>> x, y = torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1])
        >>> fewshot_probe(x, y, x, y, shots=1, seeds=(0,)).mean
        1.0
    """
    check_features("train", train, train_labels)
    check_features("test", test, test_labels)
    truth, accuracies = test_labels.cpu(), []
    unseen = test.detach().to(device, torch.float64)
    for chosen in _draws(train_labels.cpu(), truth, shots, seeds):
        x, y = train[chosen.to(train.device)].detach().to(device, torch.float64), train_labels.cpu()[chosen].to(device)
        accuracies.append(float((classify(x, y, unseen, c=c).cpu() == truth).double().mean()))
    return ProbeScore.of(accuracies)


@checked
def fewshot_finetune(
    extractor: Extractor, data: Labelled, *, shots: Count, seeds: Sequence[Seed] = (0, 1, 2), **options: Any
) -> ProbeScore:
    """Fine-tune copies of an encoder on ``shots`` labels per class, once per seed: what APL asks of few labels.

    `fewshot_probe` does the same with frozen features, in seconds. The two draw the same labels from the same seed,
    which is that of fine-tuning, too. All options are those of `finetune_encoder`.

    Raises:
        ValueError: if there are no seeds, a class has fewer labels than ``shots``, or as `finetune_encoder`.
    """
    draws = _draws(data.train_labels, data.test_labels, shots, seeds)
    few = [replace(data, train=data.train.take(chosen)) for chosen in draws]
    done = [finetune_encoder(extractor, own, seed=seed, **options) for own, seed in zip(few, seeds, strict=True)]
    return ProbeScore.of([one.score.accuracy for one in done])


def _draws(labels: Tensor, test_labels: Tensor, shots: int, seeds: Sequence[Seed]) -> list[Tensor]:
    if len(seeds) == 0:
        raise ValueError(f"seeds={tuple(seeds)} must be at least one")
    if len(set(labels.tolist())) < 2:
        raise CannotScoreError(f"labels must name at least two classes, but all are {labels[0].item()}")
    return [draw_shots(labels, test_labels, shots, torch.Generator().manual_seed(seed)) for seed in seeds]


def draw_shots(
    labels: Int[Tensor, " n"], test_labels: Int[Tensor, " m"], shots: int, generator: torch.Generator
) -> Int[Tensor, " s"]:
    """Draw ``shots`` indices of every class, classes in ascending order; ``ValueError`` if a class has fewer labels."""
    chosen = []
    for label in sorted({*labels.tolist(), *test_labels.tolist()}):
        members = (labels == label).nonzero()[:, 0]
        if len(members) < shots:
            raise CannotScoreError(
                f"shots={shots} must not exceed the labels of a class, but class {label} has {len(members)}"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:shots]])
    return torch.cat(chosen)
