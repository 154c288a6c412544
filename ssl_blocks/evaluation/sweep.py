"""A choice among settings on images held out of train."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class SweepScore:
    """What a classifier reaches with the setting that did best on images held out of train.

    Args:
        accuracy: on the test images, 0..1.
        chosen: the setting: a base learning rate, or the ``C`` of a logistic regression.
        candidates: all settings.
        validation: accuracy of each on the images held out, 0..1; empty where there was nothing to choose.
        num_classes: of the head.
    """

    accuracy: float
    chosen: float
    candidates: tuple[float, ...]
    validation: tuple[float, ...]
    num_classes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def check_candidates(name: str, candidates: Sequence[float], share: float) -> None:
    """Refuse settings among which there is no choice to make."""
    if len(candidates) == 0 or not all(c > 0 for c in candidates):
        raise ValueError(f"{name}={tuple(candidates)} must be at least one number, all above 0")
    if not 0 < share < 1:
        raise ValueError(f"validation={share} must lie within (0, 1)")


def hold_out(labels: Int[Tensor, " n"], share: float, generator: torch.Generator) -> Int[Tensor, " v"]:
    """Draw a share of every class; a class of one image keeps it for training.

    Args:
        labels: ``[N]`` class indices.
        share: of each class, rounded, at least one image.
        generator: source of randomness on the CPU.

    Returns:
        Places of the images that are held out, ascending.

    Raises:
        ValueError: if there is no class of at least two images.

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
        raise ValueError("a choice needs images to hold out, but every class has one image")
    return places
