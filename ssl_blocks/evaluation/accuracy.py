"""Shares of right answers."""

from jaxtyping import Int
from torch import Tensor


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
