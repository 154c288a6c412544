"""Fine-tuning: encoder and head trained together on labels."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor

from ssl_blocks.data import FileSplit, ImageSplit, to_float
from ssl_blocks.encoders import FeatureEncoder
from ssl_blocks.engine.batches import load_parts
from ssl_blocks.engine.parallel import Machine, Processes
from ssl_blocks.engine.rank import is_rank_zero
from ssl_blocks.engine.task import CountedLoss, Moment, Plan, Portion, Task
from ssl_blocks.evaluation.accuracy import accuracy
from ssl_blocks.evaluation.augment import Mixing, TrainAugment
from ssl_blocks.evaluation.checks import check_classes, labels_of
from ssl_blocks.evaluation.classifier import Classifier
from ssl_blocks.evaluation.features import check_images, layer_watch
from ssl_blocks.evaluation.layers import set_drop_path
from ssl_blocks.evaluation.saved import check_savable, save_classifier
from ssl_blocks.modes import modes_kept
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.randomness import mix_seed, seeded_generator

INITIAL, ORDER, IMAGES, LABELS = range(4)  # what a seed is for


@dataclass(frozen=True)
class FinetuneSettings:
    """How an encoder is fine-tuned; the defaults are those of RandSAC, Sec. 5.1 and Table 19.

    Args:
        base_lr: the rate is ``base_lr * batch / 256``.
        batch_size: images per step, over all accumulated parts; fewer where train is smaller.
        accumulate: parts of a step that are computed one after the other.
        epochs: passes over train; images that fill no batch are left out of an epoch.
        warmup_epochs: of the linear warm-up, counted in.
        weight_decay: of AdamW; none for vectors, positions and prefix tokens.
        layer_decay: factor from each layer to the one before it; 1 lets all learn alike.
        drop_path: rate of the last block; the first has 0.
        magnitude: of RandAugment; ``None`` switches it off.
        deviation: of RandAugment's magnitude.
        crop_scale: smallest and largest area of random crops, as a share of the image.
        smoothing: of the labels.
        mixup: parameter of its beta distribution; 0 switches it off.
        cutmix: the same.
        fresh_norm: whether the mean is taken before the norm (MAE's global pool): see `Classifier`.
        train_fixed: whether what came fixed is trained, too, such as a table of sines and cosines.
        seed: decides first weights, order, augmentation and what is dropped.
        num_workers: processes that read and augment images; they change nothing of the result.

    Raises:
        ValueError: if a number is out of range.
    """

    base_lr: float = 5e-4
    batch_size: int = 1024
    accumulate: int = 1
    epochs: int = 100
    warmup_epochs: float | int = 5
    weight_decay: float = 0.05
    layer_decay: float = 0.65
    drop_path: float = 0.1
    magnitude: int | None = 9
    deviation: float = 0.5
    crop_scale: tuple[float, float] = (0.08, 1.0)
    smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    fresh_norm: bool = False
    train_fixed: bool = True
    seed: int = 0
    num_workers: int = 0

    def __post_init__(self) -> None:
        if min(self.batch_size, self.accumulate, self.epochs) < 1:
            raise ValueError(
                f"batch_size={self.batch_size}, accumulate={self.accumulate} and epochs={self.epochs} must be at "
                "least 1"
            )
        if self.base_lr <= 0 or self.weight_decay < 0 or not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"base_lr={self.base_lr} must be above 0, weight_decay={self.weight_decay} not negative, and "
                f"layer_decay={self.layer_decay} within (0, 1]"
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be at least 0 and below epochs={self.epochs}")
        if self.batch_size % self.unit:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of {self.unit}: {self.accumulate} parts"
                + (", in which images are mixed in pairs" if self.mixes else "")
            )
        Mixing(2, mixup=self.mixup, cutmix=self.cutmix, smoothing=self.smoothing)  # refuse wrong numbers
        self.augment((1, 1), mean=(0.5,))

    def augment(self, size: tuple[int, int], *, mean: Sequence[float]) -> TrainAugment:
        """Augmentation of images of a size (height, width) in pixels."""
        return TrainAugment(
            size, mean=mean, magnitude=self.magnitude, deviation=self.deviation, crop_scale=self.crop_scale
        )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return max(self.mixup, self.cutmix) > 0

    @property
    def unit(self) -> int:
        """What the number of images of a step must be a multiple of."""
        return self.accumulate * (2 if self.mixes else 1)

    def batch_of(self, num_images: int) -> int:
        """Images per step where train has ``num_images``.

        Raises:
            ValueError: if they do not suffice for one step.
        """
        batch = min(self.batch_size, num_images) // self.unit * self.unit
        if batch == 0:
            raise ValueError(f"train of {num_images} images must have at least {self.unit}, for one step")
        return batch


@dataclass(frozen=True)
class FinetuneScore:
    """What a fine-tuned encoder reaches.

    Args:
        accuracy: on the test images after the last epoch, 0..1.
        losses: mean training loss of every epoch.
        num_classes: of the head.
    """

    accuracy: float
    losses: tuple[float, ...]
    num_classes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Finetuned:
    """A score, and the model that reached it, in evaluation mode."""

    score: FinetuneScore
    model: Classifier


def finetune_encoder(
    encoder: FeatureEncoder,
    train: ImageSplit | FileSplit,
    test: ImageSplit | FileSplit,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    settings: FinetuneSettings | None = None,
    num_classes: int | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    processes: Processes | None = None,
    folder: Path | None = None,
    resume: Path | bool = False,
    progress: bool = False,
) -> Finetuned:
    """Train a copy of an encoder and a new head on labelled images, and score both on the test images.

    RandSAC, Sec. 5.1. Given an encoder with random weights, it is the supervised baseline of RandSAC's Table 7. The
    test images are looked at once, after the last epoch.

    Several processes each call this function alike, and get the same score; the first one writes.

    Args:
        encoder: it is copied, and itself left as it is.
        train: images of the encoder's size, and labels.
        test: the same.
        mean: one number per channel on the 0..1 scale, as in pretraining.
        std: the same.
        settings: ``None`` means RandSAC's.
        num_classes: of the head; ``None`` means one more than the highest label of train.
        tokenizer: cuts the images as pretraining did, where it leaves pixels out; ``None`` hands over whole images.
        device: where the copy is trained.
        autocast_dtype: its precision under autocast; ``None`` switches autocast off.
        processes: how many train together, such as `ssl_blocks.engine.started_processes`; ``None``: this one alone.
        folder: where checkpoints and ``metrics.csv`` are written and, at the end, the model: see `load_classifier`.
            ``None`` writes nothing.
        resume: ``True`` goes on from the newest checkpoint in the folder, if there is one; a path from that one.
        progress: whether to show a bar.

    Raises:
        ValueError: if labels are missing or unlike the head's, the encoder cannot take the images, it does not tell the
            layers of its parameters or has no place for drop path (where these are asked for), train is too small for
            a step, features are not finite, or the checkpoint is damaged or was made of something else.
        TypeError: if there is a folder, and the encoder cannot be saved.
        FileExistsError: if the folder holds checkpoints, and ``resume`` is ``False``.
        RunStopped: on a signal where there is a folder, or a loss that is not finite.
    """
    from ssl_blocks.engine.fit import train as train_task  # Lightning is heavy

    settings = settings or FinetuneSettings()
    train_labels, test_labels = labels_of("train", train), labels_of("test", test)
    classes = num_classes if num_classes is not None else int(train_labels.max()) + 1
    check_classes("labels of train", train_labels, classes)
    check_classes("labels of test", test_labels, classes)
    model = make_classifier(encoder, num_classes=classes, settings=settings, tokenizer=tokenizer).to(device)
    options: dict[str, Any] = {"mean": mean, "std": std, "device": device, "autocast_dtype": autocast_dtype}
    with modes_kept(model, training=False), layer_watch(model.backbone) as broken:
        for split in (train, test):
            check_images(model.encoder, torch.zeros(1, *split.shape, dtype=torch.uint8), model, device)
    if broken:
        raise ValueError(
            f"encoder must return finite features, but of a blank image they are NaN or infinite, first in its layer "
            f"{broken[0]}"
        )
    if folder is not None:
        check_savable(model.encoder, tokenizer)
    task = FinetuneTask(model, train, train_labels, settings, mean=mean, std=std)
    machine = Machine(device, autocast_dtype, processes or Processes())
    losses = train_task(task, machine, folder=folder, resume=resume, title="fine-tuning" if progress else None)
    score = FinetuneScore(classifier_accuracy(model, test, **options), losses, classes)
    if folder is not None and is_rank_zero():
        save_classifier(model, folder, mean=mean, std=std)
    return Finetuned(score, model.eval())


def make_classifier(
    encoder: FeatureEncoder,
    *,
    num_classes: int,
    settings: FinetuneSettings,
    tokenizer: Tokenizer | None = None,
) -> Classifier:
    """Copy an encoder, put a head on it, and set what is trained and what is dropped.

    Args:
        encoder: it is copied, and itself left as it is.
        num_classes: of the head.
        settings: of which ``drop_path``, ``fresh_norm``, ``train_fixed`` and ``seed`` count.
        tokenizer: cuts the images as pretraining did; ``None`` hands over whole images.

    Raises:
        ValueError: as `Classifier` and `set_drop_path`.
    """
    model = Classifier(
        copy.deepcopy(encoder),
        num_classes=num_classes,
        fresh_norm=settings.fresh_norm,
        tokenizer=tokenizer,
        generator=seeded_generator("cpu", settings.seed, INITIAL),
    )
    set_drop_path(model.backbone, settings.drop_path)
    model.thaw(fixed_too=settings.train_fixed)
    return model


def classifier_accuracy(
    model: Classifier,
    split: ImageSplit | FileSplit,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    batch_size: int = 512,
) -> float:
    """Share of images that a classifier in evaluation mode classifies correctly, 0..1.

    Args:
        model: lies on ``device``; its mode is put back afterwards.
        split: images and labels.
        mean: one number per channel on the 0..1 scale, as in training.
        std: the same.
        device: where the model lies.
        autocast_dtype: precision under autocast; ``None`` switches autocast off.
        batch_size: images per call.

    Raises:
        ValueError: if labels are missing or unlike the head's.
    """
    labels = labels_of("test", split)
    check_classes("labels of test", labels, model.num_classes)
    rows = []
    kind = torch.device(device).type
    with modes_kept(model, training=False):
        for index in torch.split(torch.arange(len(split)), batch_size):
            images = to_float(_read(split, index).to(device), mean, std)
            with torch.no_grad(), torch.autocast(kind, autocast_dtype, enabled=autocast_dtype is not None):
                rows.append(model(images).argmax(1).cpu())
    return accuracy(torch.cat(rows), labels.cpu(), num_classes=model.num_classes)


class FinetuneTask(Task):
    """A classifier trained on augmented and mixed images, its loss the mean over images.

    Args:
        model: what is trained.
        train: images.
        labels: of all of them.
        settings: sizes and rates.
        mean: one number per channel on the 0..1 scale.
        std: the same.
    """

    advice = "A smaller base_lr or a longer warm-up may help"

    def __init__(
        self,
        model: Classifier,
        train: ImageSplit | FileSplit,
        labels: Int[Tensor, " n"],
        settings: FinetuneSettings,
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.model: Classifier = model
        self.train, self.labels, self.settings, self.mean, self.std = train, labels.cpu(), settings, mean, std
        batch = settings.batch_of(len(train))
        steps = len(train) // batch
        self.plan = Plan(
            steps_per_epoch=steps,
            epochs=settings.epochs,
            lr=settings.base_lr * batch / 256,
            seed=settings.seed,
            batch_size=batch,
            accumulate=settings.accumulate,
            warmup_steps=round(steps * settings.warmup_epochs),
            weight_decay=settings.weight_decay,
        )
        self.augment = settings.augment((train.shape.height, train.shape.width), mean=mean)
        self.mixing = Mixing(
            model.num_classes, mixup=settings.mixup, cutmix=settings.cutmix, smoothing=settings.smoothing
        )
        self.criterion = SoftTargetCrossEntropy()  # type: ignore[no-untyped-call]

    def batches(self, portion: Portion) -> Iterable[tuple[Tensor, Tensor]]:
        """Augmented images, uint8, and labels."""
        key, workers = (self.settings.seed, ORDER), self.settings.num_workers
        return load_parts(self._make, self.plan, portion, num_images=len(self.train), key=key, workers=workers)

    def _make(self, index: Tensor, step: int, part: int) -> tuple[Tensor, Tensor]:
        images = self.augment(_read(self.train, index), seed=mix_seed(self.settings.seed, IMAGES, step, part))
        return images, self.labels[index]

    def loss(self, batch: tuple[Tensor, Tensor], moment: Moment) -> CountedLoss:
        """Mix the images, and compare logits with the mixed labels."""
        images, labels = batch
        seed = mix_seed(self.settings.seed, LABELS, moment.step, moment.part)
        x, targets = self.mixing(to_float(images, self.mean, self.std), labels, seed=seed)
        loss: Tensor = self.criterion(self.model(x).float(), targets)
        return CountedLoss(loss, torch.tensor(len(images), device=loss.device), len(images))

    def groups(self) -> list[dict[str, Any]]:
        """Parameters by layer."""
        decay, layer_decay = self.settings.weight_decay, self.settings.layer_decay
        return self.model.parameter_groups(weight_decay=decay, layer_decay=layer_decay)

    def facts(self) -> dict[str, Any]:
        """Settings, and what they are applied to."""
        settings = {name: value for name, value in asdict(self.settings).items() if name != "num_workers"}
        data = {"images of train": len(self.train), "num_classes": self.model.num_classes}
        return settings | data | {"mean": list(self.mean), "std": list(self.std)}


def _read(split: ImageSplit | FileSplit, index: Int[Tensor, " k"]) -> Tensor:
    images = split.read(index).cpu()
    if len(images) != len(index):
        raise ValueError("corrupt='error' is needed here: an image left out would put labels out of step")
    return images
