"""Checks that every evaluation of labelled features makes."""

from jaxtyping import Int
from torch import Tensor

from ssl_blocks.data.splits import FileSplit, ImageSplit


def check_labels(name: str, features: Tensor, labels: Tensor, *, may_be_empty: bool = False) -> None:
    """Refuse labels ``name`` that are not one for each of the features, and no features at all.

    Raises:
        ValueError: naming the labels and both shapes.
    """
    if (len(features) == 0 and not may_be_empty) or labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name} of shape {tuple(labels.shape)} must be one for each of the features, which have shape "
            f"{tuple(features.shape)}, and at least one"
        )


def labels_of(name: str, split: ImageSplit | FileSplit) -> Int[Tensor, " n"]:
    """Labels of a split, which must all be there.

    Raises:
        ValueError: if the split is empty or has no labels, or an image of it has none (-1).
    """
    if len(split) == 0:
        raise ValueError(f"{name} must hold at least one image")
    if split.labels is None:
        raise ValueError(f"{name} has no labels: this evaluation needs one class index for every image")
    missing = int((split.labels < 0).sum())
    if missing:
        raise ValueError(f"{name} must have a label for every image, but {missing} of {len(split)} have none (-1)")
    return split.labels


def check_classes(name: str, labels: Int[Tensor, " n"], num_classes: int) -> None:
    """Refuse class indices that a head of ``num_classes`` does not know.

    Raises:
        ValueError: naming the labels, their range and the head's.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"{name} must be classes 0..{num_classes - 1}, for which the head was made, but reach from {lowest} "
            f"to {highest}"
        )


def check_same_width(name: str, features: Tensor, train: Tensor) -> None:
    """Refuse features ``name`` of another width than those of train.

    Raises:
        ValueError: naming both shapes.
    """
    if features.shape[1:] != train.shape[1:]:
        raise ValueError(f"{name} of shape {tuple(features.shape)} must have as many features as {tuple(train.shape)}")
