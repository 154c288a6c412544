"""What every evaluation asks of features, labels and classes."""

from jaxtyping import Int
from torch import Tensor

from ssl_blocks.data.splits import FileSplit, ImageSplit
from ssl_blocks.evaluation.protocol import CannotScoreError


def check_features(name: str, features: Tensor, labels: Tensor, *, may_be_empty: bool = False) -> None:
    """Refuse features ``name`` that are none, not finite, or without one class index each.

    One NaN is no smaller score: where it meets the others, all of them say nothing.
    """
    if (len(features) == 0 and not may_be_empty) or labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name}_labels of shape {tuple(labels.shape)} must be one for each of the features, which have shape "
            f"{tuple(features.shape)}, and at least one"
        )
    check_finite(f"{name} features", features)


def check_finite(name: str, features: Tensor) -> None:
    """Refuse features ``[N, D]`` with a NaN or an infinity."""
    if broken := broken_rows(features):
        raise ValueError(
            f"{name} must be finite, but {len(broken)} of {len(features)} rows hold NaN or infinity, first row "
            f"{broken[0]}"
        )


def broken_rows(features: Tensor) -> list[int]:
    """Rows of features ``[N, D]`` that are not finite."""
    rows: list[int] = (~features.isfinite().all(1)).nonzero()[:, 0].tolist()
    return rows


def check_splits(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> int:
    """Refuse features and labels of which no classifier could be trained and scored; return the number of classes."""
    check_features("train", train, train_labels)
    check_features("test", test, test_labels)
    num_classes = int(train_labels.max()) + 1
    check_classes("train_labels", train_labels, num_classes)
    check_classes("test_labels", test_labels, num_classes)
    return num_classes


def labels_of(name: str, split: ImageSplit | FileSplit) -> Int[Tensor, " n"]:
    """Labels of a split, which must all be there."""
    if len(split) == 0:
        raise ValueError(f"{name} must hold at least one image")
    if split.labels is None:
        raise ValueError(f"{name} has no labels: this evaluation needs one class index for every image")
    missing = int((split.labels < 0).sum())
    if missing:
        raise ValueError(f"{name} must have a label for every image, but {missing} of {len(split)} have none (-1)")
    return split.labels


def check_classes(name: str, labels: Int[Tensor, " n"], num_classes: int) -> None:
    """Refuse class indices that a head of ``num_classes`` does not know."""
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        raise CannotScoreError(
            f"{name} must be classes 0..{num_classes - 1}, for which the head was made, but reach from {lowest} "
            f"to {highest}"
        )
