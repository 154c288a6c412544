"""Checks that every evaluation of labelled features makes."""

from torch import Tensor


def check_labels(name: str, features: Tensor, labels: Tensor) -> None:
    """Refuse labels ``name`` that are not one for each of the features, and no features at all.

    Raises:
        ValueError: naming the labels and both shapes.
    """
    if len(features) == 0 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name} of shape {tuple(labels.shape)} must be one for each of the features, which have shape "
            f"{tuple(features.shape)}, and at least one"
        )
