"""A choice among settings on images held out of train."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_blocks.bounds import Classes
from ssl_blocks.doors import checked
from ssl_blocks.evaluation.checks import CannotScoreError
from ssl_blocks.evaluation.protocol import Result


@checked
@dataclass(frozen=True)
class SweepScore(Result):
    """What a classifier reaches on the test images, 0..1, with the setting that did best on images held out of train.

    The setting is a base learning rate, or the ``C`` of a logistic regression; ``validation`` has each one's accuracy
    on the images held out, and is empty where there was nothing to choose.
    """

    accuracy: float
    chosen: float
    candidates: tuple[float, ...]
    validation: tuple[float, ...]
    num_classes: Classes


def check_candidates(name: str, candidates: Sequence[float], share: float) -> None:
    """Refuse settings among which there is no choice to make."""
    if len(candidates) == 0 or not all(c > 0 for c in candidates):
        raise ValueError(f"{name}={tuple(candidates)} must be at least one number, all above 0")
    if not 0 < share < 1:
        raise ValueError(f"validation={share} must lie within (0, 1)")


def hold_out(labels: Int[Tensor, " n"], share: float, generator: torch.Generator) -> Int[Tensor, " v"]:
    """Draw a share of every class, rounded and at least one image; a class of one image keeps it for training.

    Args:
        labels: ``[N]`` class indices.
        share: of each class.
        generator: source of randomness on the CPU.

    Returns:
        Places of the images that are held out, ascending; ``ValueError`` if there are none.

    Examples:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
        >>> labels[hold_out(labels, 0.25, torch.Generator().manual_seed(0))]
        tensor([0, 1])
    """
    held = []
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    places = torch.cat(held).sort().values
    if len(places) == 0:
        raise CannotScoreError("a choice needs images to hold out, but every class has one image")
    return places


def accuracy(predicted: Int[Tensor, " n"], labels: Int[Tensor, " n"], *, num_classes: int) -> float:
    """Share of predicted classes that are the labels, 0..1, every image counting alike (micro).

    Examples:
        >>> import torch
        >>> accuracy(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 1]), num_classes=2)
        0.75
    """
    # a heavy import, for one call at the end of a run
    from torchmetrics.functional.classification import multiclass_accuracy

    share = multiclass_accuracy(
        predicted, labels.to(predicted.device), num_classes=num_classes, average="micro", validate_args=False
    )
    return float(share)
