"""Dense transfer: what an encoder is worth for segmentation."""

import copy
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt, UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from ssl_blocks.bounds import Positive, Seed, Width
from ssl_blocks.data.augment import RandomResizedCropFlip, to_float
from ssl_blocks.data.pairs import IGNORED, MaskedImages, SegmentationData
from ssl_blocks.data.resample import mirror, resize
from ssl_blocks.doors import checked
from ssl_blocks.encoders import TokenEncoder
from ssl_blocks.engine.batches import load_parts
from ssl_blocks.engine.parallel import Machine, Processes
from ssl_blocks.engine.rank import is_rank_zero
from ssl_blocks.engine.task import CountedLoss, Moment, Plan, Portion, Task
from ssl_blocks.evaluation.extract import Extractor
from ssl_blocks.evaluation.overlap import SegmentationScores, check_mask_classes, score_segmentation
from ssl_blocks.evaluation.protocols.segment import SegmentationTraining
from ssl_blocks.evaluation.pyramid import FeaturePyramid
from ssl_blocks.evaluation.saved import check_savable, save_segmenter
from ssl_blocks.evaluation.segmentation import SegmentationModel, UPerHead
from ssl_blocks.modes import modes_kept
from ssl_blocks.randomness import seeded_generator

ORDER, CROPS = range(2)  # what a seed is for


@checked
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


class SegmentationTask(Task):
    """A segmentation model trained on images and masks, its loss the mean over pixels that are not ignored.

    An encoder that the model's pyramid freezes stays as it is. The seed decides order, crops and dropout; mean and std
    are one number per channel on the 0..1 scale.
    """

    advice = "A smaller lr or a longer warmup may help"

    def __init__(
        self,
        model: SegmentationModel,
        data: MaskedImages,
        training: SegmentationTraining,
        *,
        mean: Sequence[float],
        std: Sequence[Positive],
        seed: int,
    ) -> None:
        if len(data) == 0:
            raise ValueError("data must hold at least one image")
        self.model: SegmentationModel = model
        self.data, self.training, self.mean, self.std, self.seed = data, training, mean, std, seed
        if model.pyramid.freeze:
            model.pyramid.encoder.module.requires_grad_(False)
        batch = min(training.batch_size, len(data))
        steps = len(data) // batch
        num_steps = steps * training.epochs
        self.plan = Plan(
            steps_per_epoch=steps,
            epochs=training.epochs,
            lr=training.lr,
            seed=seed,
            batch_size=batch,
            warmup_steps=min(int(training.warmup * num_steps), num_steps - 1),
            weight_decay=training.weight_decay,
            clip_grad=training.clip,
        )

    def batches(self, portion: Portion) -> Iterable[tuple[Tensor, Tensor]]:
        """Cropped images and masks."""
        key, workers = (self.seed, ORDER), self.training.num_workers
        return load_parts(self._make, self.plan, portion, num_images=len(self.data), key=key, workers=workers)

    def _make(self, index: Tensor, step: int, part: int) -> tuple[Tensor, Tensor]:
        images, masks = (torch.stack(parts) for parts in zip(*(self.data[i] for i in index.tolist()), strict=True))
        check_mask_classes(masks, self.model.num_classes)
        generator = seeded_generator("cpu", self.seed, CROPS, step, part)
        return _augment(images, masks, self.training.crop_scale, generator)

    def loss(self, batch: tuple[Tensor, Tensor], moment: Moment) -> CountedLoss:
        """Cross entropy of the pixels that count."""
        images, masks = batch
        loss = segmentation_loss(self.model(to_float(images, self.mean, self.std)), masks)
        return CountedLoss(loss, (masks != IGNORED).sum())

    def no_weight_decay(self) -> Collection[str]:
        """Positions and prefix tokens."""
        return self.model.no_weight_decay()

    def facts(self) -> dict[str, Any]:
        """Settings, and what they are applied to."""
        settings = self.training.model_dump(include={*SegmentationTraining.model_fields} - {"num_workers"})
        data = {"images": len(self.data), "num_classes": self.model.num_classes, "seed": self.seed}
        freeze = {"freeze": self.model.pyramid.freeze}
        return settings | data | freeze | {"mean": list(self.mean), "std": list(self.std)}


@checked
def train_segmentation(
    model: SegmentationModel,
    data: MaskedImages,
    *,
    mean: Sequence[float],
    std: Sequence[Positive],
    training: SegmentationTraining | None = None,
    seed: Seed = 0,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    processes: Processes | None = None,
    folder: Path | None = None,
    resume: Path | bool = False,
    progress: bool = False,
    class_names: Sequence[str] = (),
) -> tuple[float, ...]:
    """Train a segmentation model in place; return the mean loss of every epoch.

    A frozen encoder in it stays as it is. Several processes each call this function alike; the first one writes.

    Args:
        model: its mode is put back afterwards.
        data: images of the encoder's size, and masks.
        mean: one number per channel on the 0..1 scale.
        std: the same.
        training: ``None`` means the defaults.
        seed: decides order, crops and dropout; torch's default generator is left alone.
        device: where the model is trained; it lies there afterwards.
        autocast_dtype: precision under autocast; ``None`` switches autocast off.
        processes: how many train together, such as `ssl_blocks.engine.started_processes`; ``None``: this one alone.
        folder: of checkpoints, ``metrics.csv`` and, at the end, the model (`load_segmenter`); ``None`` writes nothing.
        resume: ``True`` goes on from the newest checkpoint in the folder, if there is one; a path from that one.
        progress: whether to show a bar.
        class_names: by class, kept with the model in the folder.

    Raises:
        ValueError: if there are no images, images or masks do not fit the model, or the checkpoint is damaged or
            another's.
        TypeError: if there is a folder, and the encoder cannot be saved.
        FileExistsError: if the folder holds checkpoints, and ``resume`` is ``False``.
        RunStopped: on a signal where there is a folder, or a loss that is not finite.
    """
    from ssl_blocks.engine.fit import train  # Lightning is heavy

    if folder is not None:
        check_savable(model.pyramid.encoder, None)
    task = SegmentationTask(model, data, training or SegmentationTraining(), mean=mean, std=std, seed=seed)
    machine = Machine(device, autocast_dtype, processes or Processes())
    losses = train(task, machine, folder=folder, resume=resume, title="segmentation" if progress else None)
    if folder is not None and is_rank_zero():
        save_segmenter(model, folder, mean=mean, std=std, class_names=class_names)
    return losses


@checked
def evaluate_segmentation(
    extractor: Extractor,
    data: SegmentationData,
    *,
    freeze: bool = False,
    width: Width = 64,
    seed: Seed = 0,
    **options: Any,
) -> SegmentationScores:
    """Put a pyramid and a segmentation head on an encoder, train them, and score them on the test images.

    RandSAC, appendix B, made small: images have the encoder's size, in training and in testing.

    Args:
        extractor: whose encoder is copied, and itself left as it is; it says how images go in, where and how precisely.
        data: images of the encoder's size and masks; see `load_segmentation`.
        freeze: whether only pyramid and head are trained.
        width: channels of the maps and of the head; papers take 256 and more.
        seed: decides first weights, too.
        **options: handed to `train_segmentation`: ``training``, ``folder``, ``resume`` and so on.

    Raises:
        ValueError: if the encoder has no tokens of whole images, it cannot have a pyramid, its features are not finite,
            or as `train_segmentation`.
    """
    encoder, x = tokens_of("evaluate_segmentation", extractor), extractor
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pyramid = FeaturePyramid(copy.deepcopy(encoder), out_channels=width, freeze=freeze)
        model = SegmentationModel(pyramid, UPerHead(in_channels=width, num_classes=data.num_classes)).to(x.device)
        with modes_kept(pyramid, training=False):
            pyramid.check_finite(to_float(data.train[0][0][None].to(x.device), x.mean, x.std))
        where: dict[str, Any] = {"mean": x.mean, "std": x.std, "device": x.device, "autocast_dtype": x.dtype}
        train_segmentation(model, data.train, seed=seed, class_names=data.class_names, **where, **options)
        return score_segmentation(model, data.test, data.class_names, **where)


def tokens_of(who: str, extractor: Extractor) -> TokenEncoder:
    """The encoder, which must be one of tokens of whole images."""
    encoder = extractor.encoder
    if isinstance(encoder, TokenEncoder) and extractor.tokenizer is None and encoder.grid.ndim == 2:
        return encoder
    raise ValueError(f"{who} needs an encoder of tokens that takes whole images, and {type(encoder).__name__} is none")


def _augment(
    images: UInt[Tensor, "b c h w"],
    masks: UInt8[Tensor, "b h w"],
    scale: tuple[float, float] | None,
    generator: torch.Generator | None,
) -> tuple[UInt[Tensor, "b c h w"], UInt8[Tensor, "b h w"]]:
    """Cut the same box out of image and mask, and mirror both or none."""
    if scale is None:
        return images, masks
    height, width = images.shape[-2:]
    crop = RandomResizedCropFlip((height, width), scale=scale)
    pairs = []
    for image, mask in zip(images, masks, strict=True):
        box = crop.draw_box(height, width, generator=generator or torch.default_generator)
        where = (box.top, box.left, box.height, box.width, [height, width])
        part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
        x = resize(part, (height, width))
        y = TF.resized_crop(mask[None], *where, interpolation=InterpolationMode.NEAREST_EXACT)[0]
        pairs.append((mirror(x), mirror(y)) if box.mirror else (x, y))
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])
