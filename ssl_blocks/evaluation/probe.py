"""Linear classification of frozen features from a few labels."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.evaluation.checks import check_labels

MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeScore:
    """Accuracies, 0..1, of probes that differ in the labels drawn.

    Args:
        mean: over the seeds.
        std: over the seeds (of the population: 0 for a single seed).
        per_seed: one accuracy per seed.
    """

    mean: float
    std: float
    per_seed: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def fewshot_probe(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    test_features: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    *,
    shots: int = 10,
    seeds: Sequence[int] = (0, 1, 2),
    c: float = 1.0,
) -> ProbeScore:
    """Fit a logistic regression on ``shots`` labels per class, once per seed.

    Features are standardised with the statistics of the labelled ones.

    Args:
        features: ``[N, D]``, from which the labelled ones are drawn.
        labels: ``[N]`` class indices.
        test_features: ``[M, D]``.
        test_labels: ``[M]`` class indices.
        shots: labels per class.
        seeds: each draws labels of its own.
        c: inverse strength of the L2 penalty, scikit-learn's ``C``.

    Returns:
        Mean, standard deviation and single accuracies on the test features.

    Raises:
        ValueError: if a number is out of range, there are no seeds, shapes do not fit together, fewer than
            two classes exist, or a class (of the test labels, too) has fewer labels than ``shots``.

    Examples:
        >>> x, y = torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1])
        >>> fewshot_probe(x, y, x, y, shots=1, seeds=(0,)).mean
        1.0
    """
    # scikit-learn is slow to import, and not every evaluation needs it
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check(features, labels, test_features, test_labels)
    if shots < 1:
        raise ValueError(f"shots={shots} must be at least 1")
    if len(seeds) == 0:
        raise ValueError(f"seeds={tuple(seeds)} must be at least one")
    if not c > 0:
        raise ValueError(f"c={c} must be above 0")
    train, test = features.float().cpu().numpy(), test_features.float().cpu().numpy()
    accuracies = []
    for seed in seeds:
        chosen = draw_shots(labels.cpu(), test_labels.cpu(), shots, torch.Generator().manual_seed(seed)).numpy()
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=MAX_ITERATIONS))
        probe.fit(train[chosen], labels.cpu().numpy()[chosen])
        accuracies.append(float(probe.score(test, test_labels.cpu().numpy())))
    return ProbeScore(statistics.fmean(accuracies), statistics.pstdev(accuracies), tuple(accuracies))


def draw_shots(
    labels: Int[Tensor, " n"], test_labels: Int[Tensor, " m"], shots: int, generator: torch.Generator
) -> Int[Tensor, " s"]:
    """Draw ``shots`` indices of every class, classes in ascending order.

    Raises:
        ValueError: if a class has fewer labels than ``shots``.
    """
    chosen = []
    for label in sorted({*labels.tolist(), *test_labels.tolist()}):
        members = (labels == label).nonzero()[:, 0]
        if len(members) < shots:
            raise ValueError(
                f"shots={shots} must not exceed the labels of a class, but class {label} has {len(members)}"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:shots]])
    return torch.cat(chosen)


def _check(features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor) -> None:
    check_labels("labels", features, labels)
    check_labels("test_labels", test_features, test_labels)
    if features.shape[1:] != test_features.shape[1:]:
        raise ValueError(
            f"test_features of shape {tuple(test_features.shape)} must have as many features as {tuple(features.shape)}"
        )
    if len(set(labels.tolist())) < 2:
        raise ValueError(f"labels must name at least two classes, but all are {labels[0].item()}")
