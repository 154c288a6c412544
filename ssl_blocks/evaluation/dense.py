"""Dense transfer: what an encoder is worth for segmentation."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from ssl_blocks.data.augment import RandomResizedCropFlip, to_float
from ssl_blocks.encoders import TokenEncoder
from ssl_blocks.evaluation.overlap import SegmentationScores, check_mask_classes, score_segmentation
from ssl_blocks.evaluation.pairs import MaskedImages, SegmentationData
from ssl_blocks.evaluation.pyramid import FeaturePyramid
from ssl_blocks.evaluation.segmentation import IGNORED, SegmentationModel, UPerHead
from ssl_blocks.modes import modes_kept


@dataclass(frozen=True)
class SegmentationTraining:
    """How a segmentation model is trained: AdamW, a linear warm-up, then half a cosine down to 0.

    Args:
        epochs: passes over the images.
        batch_size: images per step.
        lr: learning rate at the end of the warm-up, for encoder and head alike.
        weight_decay: for all but norms, biases, positions and prefix tokens.
        warmup: share of the steps.
        clip: largest norm of the gradient.
        crop_scale: smallest and largest area of random crops, as a share of the image; ``None`` switches crops and
            mirroring off.
        num_workers: processes that read images.

    Raises:
        ValueError: if a number is out of range.
    """

    epochs: int = 20
    batch_size: int = 16
    lr: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    num_workers: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1:
            raise ValueError(f"epochs={self.epochs} and batch_size={self.batch_size} must be at least 1")
        if min(self.lr, self.clip) <= 0:
            raise ValueError(f"lr={self.lr} and clip={self.clip} must be above 0")
        if min(self.weight_decay, self.num_workers) < 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"weight_decay={self.weight_decay} and num_workers={self.num_workers} must not be negative, and "
                f"warmup={self.warmup} must lie within [0, 1)"
            )
        if self.crop_scale is not None:
            RandomResizedCropFlip(1, scale=self.crop_scale)  # refuses a wrong range


def segmentation_loss(
    logits: Float[Tensor, "b k h w"], masks: Int[Tensor, "b h w"] | UInt8[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """Cross entropy averaged over the pixels that are not ignored (255); 0 where all are.

    Examples:
        >>> masks = torch.tensor([[[0, 255]]])
        >>> round(segmentation_loss(torch.zeros(1, 2, 1, 2), masks).item(), 4)  # log 2
        0.6931
    """
    masks = masks.long()
    total = F.cross_entropy(logits.float(), masks, ignore_index=IGNORED, reduction="sum")
    return total / (masks != IGNORED).sum().clamp(min=1)


def train_segmentation(
    model: SegmentationModel,
    data: MaskedImages,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    training: SegmentationTraining | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
) -> tuple[float, ...]:
    """Train a segmentation model in place; a frozen encoder in it stays as it is.

    Args:
        model: lies on ``device``; its mode is put back afterwards.
        data: images of the encoder's size, and masks.
        mean: one number per channel on the 0..1 scale.
        std: the same.
        training: ``None`` means the defaults.
        generator: source of order and crops, on the CPU; ``None`` uses torch's default, as dropout does.
        device: where the model lies.
        autocast_dtype: precision under autocast; ``None`` switches autocast off.

    Returns:
        Mean loss of every epoch.

    Raises:
        ValueError: if there are no images, a mask holds a class that the head does not have, the images are not of
            the encoder's size, or the loss is not finite.
    """
    training = training or SegmentationTraining()
    if len(data) == 0:
        raise ValueError("data must hold at least one image")
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        data,  # type: ignore[arg-type]  # a Dataset in all but name
        batch_size=training.batch_size,
        shuffle=True,
        generator=generator,
        num_workers=training.num_workers,
    )
    optimizer, schedule = _optimizer(model, training, num_steps=training.epochs * len(loader))
    trained, losses = _trained(model), []
    with modes_kept(model, training=True):
        for epoch in range(training.epochs):
            rows = []
            for i, (images, masks) in enumerate(loader, start=epoch * len(loader)):
                check_mask_classes(masks, model.num_classes)
                images, masks = _augment(images, masks, training.crop_scale, generator)
                schedule.step_update(i)
                with torch.autocast(torch.device(device).type, autocast_dtype, enabled=autocast_dtype is not None):
                    logits = model(to_float(images.to(device), mean, std))
                loss = segmentation_loss(logits, masks.to(device))
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(trained, training.clip)
                optimizer.step()
                rows.append(loss.detach())
            losses.append(_finite_mean(rows, epoch, training.lr))
    return tuple(losses)


def evaluate_segmentation(
    encoder: TokenEncoder,
    *,
    data: SegmentationData,
    mean: Sequence[float],
    std: Sequence[float],
    freeze: bool = False,
    width: int = 64,
    training: SegmentationTraining | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
) -> SegmentationScores:
    """Put a pyramid and a segmentation head on an encoder, train them, and score them on the test images.

    RandSAC, appendix B, made small: images have the encoder's size, in training and in testing.

    Args:
        encoder: it is copied, and itself left as it is.
        data: images of the encoder's size and masks; see `load_segmentation`.
        mean: one number per channel on the 0..1 scale, as in pretraining.
        std: the same.
        freeze: whether only pyramid and head are trained.
        width: channels of the maps and of the head; papers take 256 and more.
        training: ``None`` means the defaults.
        seed: decides first weights, order, crops and dropout; torch's default generator is left alone.
        device: where it all runs.
        autocast_dtype: precision under autocast; ``None`` switches autocast off.

    Raises:
        ValueError: if the encoder cannot have a pyramid, its features are not finite, images are not of its size, or
            as `train_segmentation`.
    """
    with _own_randomness(seed, device):
        pyramid = FeaturePyramid(copy.deepcopy(encoder), out_channels=width, freeze=freeze)
        head = UPerHead(in_channels=width, num_classes=data.num_classes)
        model = SegmentationModel(pyramid, head).to(device)
        with modes_kept(pyramid, training=False):
            pyramid.check_finite(to_float(data.train[0][0][None].to(device), mean, std))
        where: dict[str, Any] = {"mean": mean, "std": std, "device": device, "autocast_dtype": autocast_dtype}
        train_segmentation(model, data.train, training=training, generator=torch.Generator().manual_seed(seed), **where)
        return score_segmentation(model, data.test, data.class_names, **where)


def _augment(
    images: UInt8[Tensor, "b c h w"],
    masks: UInt8[Tensor, "b h w"],
    scale: tuple[float, float] | None,
    generator: torch.Generator | None,
) -> tuple[UInt8[Tensor, "b c h w"], UInt8[Tensor, "b h w"]]:
    """Cut the same box out of image and mask, and mirror both or none."""
    if scale is None:
        return images, masks
    height, width = images.shape[-2:]
    crop = RandomResizedCropFlip((height, width), scale=scale)
    pairs = []
    for image, mask in zip(images, masks, strict=True):
        box = crop.draw_box(height, width, generator=generator or torch.default_generator)
        where = (box.top, box.left, box.height, box.width, [height, width])
        x = TF.resized_crop(image, *where, antialias=True)
        y = TF.resized_crop(mask[None], *where, interpolation=InterpolationMode.NEAREST_EXACT)[0]
        pairs.append((x.flip(-1), y.flip(-1)) if box.mirror else (x, y))
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


def _finite_mean(losses: list[Tensor], epoch: int, lr: float) -> float:
    mean = float(torch.stack(losses).mean())  # once an epoch: an accelerator waits here
    if not math.isfinite(mean):
        raise ValueError(f"the loss of epoch {epoch + 1} must be finite, but is {mean}: try less than lr={lr}")
    return mean


def _trained(model: SegmentationModel) -> list[torch.nn.Parameter]:
    frozen = set(model.pyramid.encoder.module.parameters()) if model.pyramid.freeze else set()
    return [p for p in model.parameters() if p.requires_grad and p not in frozen]


def _optimizer(model: SegmentationModel, training: SegmentationTraining, *, num_steps: int) -> tuple[Any, Any]:
    from timm.scheduler import CosineLRScheduler

    trained, spared = set(_trained(model)), model.no_weight_decay()
    named = [(name, p) for name, p in model.named_parameters() if p in trained]
    decay = [p for name, p in named if p.ndim > 1 and name not in spared]
    spare = [p for name, p in named if p.ndim < 2 or name in spared]
    groups: list[dict[str, Any]] = [{"params": decay}, {"params": spare, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=training.lr, weight_decay=training.weight_decay)
    warmup = min(int(training.warmup * num_steps), num_steps - 1)
    schedule = CosineLRScheduler(
        optimizer, t_initial=num_steps - warmup, warmup_t=warmup, warmup_prefix=True, t_in_epochs=False
    )
    return optimizer, schedule


@contextmanager
def _own_randomness(seed: int, device: torch.device | str) -> Iterator[None]:
    gpus = list(range(torch.cuda.device_count())) if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield
