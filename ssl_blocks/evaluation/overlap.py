"""Intersection over union and accuracy of classified pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_blocks.bounds import Batch, Count, Positive
from ssl_blocks.data.augment import to_float
from ssl_blocks.data.pairs import IGNORED, MaskedImages, SegmentationData
from ssl_blocks.doors import checked
from ssl_blocks.evaluation.protocol import Result
from ssl_blocks.evaluation.segmentation import SegmentationModel
from ssl_blocks.modes import modes_kept


@checked
@dataclass(frozen=True)
class SegmentationScores(Result):
    """How well pixels are classified; ignored ones do not count.

    Args:
        mean_iou: mean over classes (macro) of intersection over union, each over all images together, 0..1. Classes
            that are neither there nor predicted do not count.
        pixel_accuracy: share of pixels (micro), 0..1.
        class_iou: intersection over union per class name; ``None`` where the class is neither there nor predicted.
        num_images: how many were scored.
    """

    mean_iou: float
    pixel_accuracy: float
    class_iou: dict[str, float | None]
    num_images: Count


@checked
def score_segmentation(
    model: SegmentationModel,
    data: MaskedImages,
    class_names: Sequence[str],
    *,
    mean: Sequence[float],
    std: Sequence[Positive],
    batch_size: Batch = 16,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
) -> SegmentationScores:
    """Score a model in evaluation mode, at the size of the images in ``data``.

    Args:
        model: lies on ``device``; its mode is put back afterwards.
        data: images of the encoder's size, and masks.
        class_names: one per class of the head.
        mean: one number per channel on the 0..1 scale.
        std: the same.
        batch_size: images per call of the model.
        device: where the model lies.
        autocast_dtype: precision under autocast; ``None`` switches autocast off.

    Raises:
        ValueError: if there are no images, or no pixels that count, names and classes differ in number, or a mask
            holds a class that the head does not have.
    """
    if len(class_names) != model.num_classes:
        raise ValueError(f"class_names={tuple(class_names)} must be {model.num_classes}, the classes of the head")

    def predict(images: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, autocast_dtype, enabled=autocast_dtype is not None):
            logits: Tensor = model(to_float(images.to(device), mean, std))
        return logits.argmax(1)

    with torch.inference_mode(), modes_kept(model, training=False):
        return _score(data, class_names, predict, batch_size, device)


@checked
def majority_baseline(data: SegmentationData) -> SegmentationScores:
    """Score the answer "the most frequent class of the training masks" everywhere: what a model must beat.

    Raises:
        ValueError: if a mask holds a class that the data does not have.
    """
    counts = torch.zeros(IGNORED + 1, dtype=torch.int64)
    for i in range(len(data.train)):
        counts += data.train[i][1].flatten().long().bincount(minlength=IGNORED + 1)
    winner = int(counts[: data.num_classes].argmax())
    return _score(data.test, data.class_names, lambda images: torch.full_like(images[:, 0], winner).long(), 16, "cpu")


def check_mask_classes(masks: UInt8[Tensor, "b h w"], num_classes: int) -> None:
    """Refuse masks on the CPU with classes that a head does not have."""
    wrong = masks[(masks >= num_classes) & (masks != IGNORED)]
    if len(wrong):
        raise ValueError(
            f"masks hold class {int(wrong.max())}, but must be within 0..{num_classes - 1}, the {num_classes} classes "
            f"of the head, or {IGNORED}"
        )


def _score(
    data: MaskedImages,
    class_names: Sequence[str],
    predict: Callable[[Tensor], Tensor],
    batch_size: int,
    device: torch.device | str,
) -> SegmentationScores:
    # a heavy import, which training does without
    from torchmetrics.classification import MulticlassJaccardIndex

    if len(data) == 0:
        raise ValueError("data must hold at least one image")
    options: dict[str, Any] = {"num_classes": len(class_names), "ignore_index": IGNORED, "validate_args": False}
    overlap = MulticlassJaccardIndex(average="macro", **options).to(device)
    for images, masks in DataLoader(data, batch_size=batch_size):  # type: ignore[arg-type]
        check_mask_classes(masks, len(class_names))
        overlap.update(predict(images), masks.to(device).long())
    counts = overlap.confmat
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    each = [None if u == 0 else i / u for i, u in zip(counts.diag().tolist(), union.tolist(), strict=True)]
    if all(iou is None for iou in each):
        raise ValueError(f"masks must have pixels that count, but all of {len(data)} hold {IGNORED} alone")
    return SegmentationScores(
        mean_iou=float(overlap.compute()),
        pixel_accuracy=float(counts.diag().sum() / counts.sum()),
        class_iou=dict(zip(class_names, each, strict=True)),
        num_images=len(data),
    )
