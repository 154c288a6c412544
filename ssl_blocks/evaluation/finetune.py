"""Fine-tuning: encoder and head trained together on labels."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor

from ssl_blocks.bounds import Batch, Classes, Positive, Seed
from ssl_blocks.data import FileSplit, ImageSplit, to_float
from ssl_blocks.doors import checked
from ssl_blocks.encoders import FeatureEncoder
from ssl_blocks.engine.batches import load_parts
from ssl_blocks.engine.parallel import Machine, Processes
from ssl_blocks.engine.rank import is_rank_zero
from ssl_blocks.engine.settings import fitting_warmup
from ssl_blocks.engine.task import CountedLoss, Moment, Plan, Portion, Task
from ssl_blocks.evaluation.checks import check_classes, labels_of
from ssl_blocks.evaluation.classifier import Classifier
from ssl_blocks.evaluation.extract import Extractor, check_channels, check_images, layer_watch
from ssl_blocks.evaluation.labelled import Labelled, read_images
from ssl_blocks.evaluation.layers import set_drop_path
from ssl_blocks.evaluation.mixing import Mixing, TrainAugment
from ssl_blocks.evaluation.protocol import Result
from ssl_blocks.evaluation.protocols.finetune import FinetuneSettings
from ssl_blocks.evaluation.saved import check_savable, save_classifier
from ssl_blocks.evaluation.sweep import accuracy
from ssl_blocks.modes import modes_kept
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.randomness import mix_seed, seeded_generator

INITIAL, ORDER, IMAGES, LABELS = range(4)  # what a seed is for


@checked
@dataclass(frozen=True)
class FinetuneScore(Result):
    """What a fine-tuned encoder reaches: accuracy on the test images, 0..1, and the mean loss of every epoch."""

    accuracy: float
    losses: tuple[float, ...]
    num_classes: Classes


@checked
@dataclass(frozen=True, eq=False)
class Finetuned:
    """A score, and the model that reached it, in evaluation mode."""

    score: FinetuneScore
    model: Classifier


@checked
def finetune_encoder(
    extractor: Extractor,
    data: Labelled,
    *,
    settings: FinetuneSettings | None = None,
    seed: Seed = 0,
    num_classes: Classes | None = None,
    processes: Processes | None = None,
    folder: Path | None = None,
    resume: Path | bool = False,
    progress: bool = False,
) -> Finetuned:
    """Train a copy of an encoder and a new head on labelled images, and score both on the test images.

    RandSAC, Sec. 5.1. Given an encoder with random weights, it is the supervised baseline of RandSAC's Table 7. The
    test images are looked at once, after the last epoch. Several processes each call this function alike, and get the
    same score; the first one writes.

    Args:
        extractor: whose encoder is copied, and itself left as it is; it says how images go in, where and how precisely.
        data: images of the encoder's size, and labels.
        settings: ``None`` means RandSAC's.
        seed: decides first weights, order, augmentation and what is dropped.
        num_classes: of the head; ``None`` means one more than the highest label of train.
        processes: how many train together, such as `ssl_blocks.engine.started_processes`; ``None``: this one alone.
        folder: of checkpoints, ``metrics.csv`` and, at the end, the model (`load_classifier`); ``None`` writes nothing.
        resume: ``True`` goes on from the newest checkpoint in the folder, if there is one; a path from that one.
        progress: whether to show a bar.

    Raises:
        ValueError: if images, their number, classes or features do not fit, the encoder lacks layers or places for
            drop path that are asked for, or the checkpoint is damaged or another's.
        TypeError: if there is a folder, and the encoder cannot be saved.
        FileExistsError: if the folder holds checkpoints, and ``resume`` is ``False``.
        RunStopped: on a signal where there is a folder, or a loss that is not finite.
    """
    from ssl_blocks.engine.fit import train as train_task  # Lightning is heavy

    settings, x = settings or FinetuneSettings(), extractor
    classes = data.num_classes if num_classes is None else num_classes
    check_classes("labels of train", data.train_labels, classes)
    model = make_classifier(x.encoder, num_classes=classes, settings=settings, seed=seed, tokenizer=x.tokenizer)
    model.to(x.device)
    with modes_kept(model, training=False), layer_watch(model.backbone) as broken:
        if x.tokenizer is None:
            check_channels(model.encoder, data.train.shape[0])
        check_images(model.encoder, data.train.shape, model, x.device)
    if broken:
        raise ValueError(
            f"encoder must return finite features, but of a blank image they are NaN or infinite, first in its layer "
            f"{broken[0]}"
        )
    if folder is not None:
        check_savable(model.encoder, x.tokenizer)
    task = FinetuneTask(model, data, settings, mean=x.mean, std=x.std, seed=seed)
    machine = Machine(x.device, x.dtype, processes or Processes())
    losses = train_task(task, machine, folder=folder, resume=resume, title="fine-tuning" if progress else None)
    reached = classifier_accuracy(model, data.test, mean=x.mean, std=x.std, device=x.device, autocast_dtype=x.dtype)
    score = FinetuneScore(reached, losses, classes)
    if folder is not None and is_rank_zero():
        notes: dict[str, Any] = {"class_names": data.class_names, "value_range": data.value_range}
        save_classifier(model, folder, mean=x.mean, std=x.std, **notes)
    return Finetuned(score, model.eval())


@checked
def make_classifier(
    encoder: FeatureEncoder,
    *,
    num_classes: Classes,
    settings: FinetuneSettings,
    seed: Seed = 0,
    tokenizer: Tokenizer | None = None,
) -> Classifier:
    """Copy an encoder, put a head on it, and set what is trained and what is dropped.

    Of the settings ``drop_path``, ``fresh_norm`` and ``train_fixed`` count; the seed is of the head's weights.

    Raises:
        ValueError: as `Classifier` and `set_drop_path`.
    """
    model = Classifier(
        copy.deepcopy(encoder),
        num_classes=num_classes,
        fresh_norm=settings.fresh_norm,
        tokenizer=tokenizer,
        generator=seeded_generator("cpu", seed, INITIAL),
    )
    set_drop_path(model.backbone, settings.drop_path)
    model.thaw(fixed_too=settings.train_fixed)
    return model


@checked
def classifier_accuracy(
    model: Classifier,
    split: ImageSplit | FileSplit,
    *,
    mean: Sequence[float],
    std: Sequence[Positive],
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    batch_size: Batch = 512,
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
        for part in read_images(split, torch.arange(len(split)), chunk=batch_size):
            images = to_float(part.to(device), mean, std)
            with torch.no_grad(), torch.autocast(kind, autocast_dtype, enabled=autocast_dtype is not None):
                rows.append(model(images).argmax(1).cpu())
    return accuracy(torch.cat(rows), labels.cpu())


class FinetuneTask(Task):
    """A classifier trained on augmented and mixed images, its loss the mean over images.

    The seed decides order, augmentation and what is dropped; mean and std are one number per channel on the 0..1 scale.
    """

    advice = "A smaller base_lr or a longer warm-up may help"

    def __init__(
        self,
        model: Classifier,
        data: Labelled,
        settings: FinetuneSettings,
        *,
        mean: Sequence[float],
        std: Sequence[Positive],
        seed: int = 0,
    ) -> None:
        self.model: Classifier = model
        self.train, self.labels, self.settings, self.seed = data.train, data.train_labels, settings, seed
        self.mean, self.std = mean, std
        batch = settings.batch_of(len(data.train))
        steps = len(data.train) // batch
        self.plan = Plan(
            steps_per_epoch=steps,
            epochs=settings.epochs,
            lr=settings.base_lr * batch / 256,
            seed=seed,
            batch_size=batch,
            accumulate=settings.accumulate,
            warmup_steps=fitting_warmup(round(steps * settings.warmup_epochs), num_steps=steps * settings.epochs),
            weight_decay=settings.weight_decay,
        )
        self.augment = TrainAugment(
            (data.train.shape.height, data.train.shape.width),
            mean=mean,
            magnitude=settings.magnitude,
            deviation=settings.deviation,
            crop_scale=settings.crop_scale,
        )
        self.mixing = Mixing(
            model.num_classes, mixup=settings.mixup, cutmix=settings.cutmix, smoothing=settings.smoothing
        )
        self.criterion = SoftTargetCrossEntropy()  # type: ignore[no-untyped-call]

    def batches(self, portion: Portion) -> Iterable[tuple[Tensor, Tensor]]:
        """Augmented images, uint8, and labels."""
        key, workers = (self.seed, ORDER), self.settings.num_workers
        return load_parts(self._make, self.plan, portion, num_images=len(self.train), key=key, workers=workers)

    def _make(self, index: Tensor, step: int, part: int) -> tuple[Tensor, Tensor]:
        images = next(read_images(self.train, index, chunk=len(index))).cpu()
        return self.augment(images, seed=mix_seed(self.seed, IMAGES, step, part)), self.labels[index]

    def loss(self, batch: tuple[Tensor, Tensor], moment: Moment) -> CountedLoss:
        """Mix the images, and compare logits with the mixed labels."""
        images, labels = batch
        seed = mix_seed(self.seed, LABELS, moment.step, moment.part)
        x, targets = self.mixing(to_float(images, self.mean, self.std), labels, seed=seed)
        loss: Tensor = self.criterion(self.model(x).float(), targets)
        return CountedLoss(loss, torch.tensor(len(images), device=loss.device))

    def groups(self) -> list[dict[str, Any]]:
        """Parameters by layer."""
        decay, layer_decay = self.settings.weight_decay, self.settings.layer_decay
        return self.model.parameter_groups(weight_decay=decay, layer_decay=layer_decay)

    def facts(self) -> dict[str, Any]:
        """Settings, and what they are applied to."""
        settings = self.settings.model_dump(include={*FinetuneSettings.model_fields} - {"num_workers"})
        data = {"images of train": len(self.train), "num_classes": self.model.num_classes, "seed": self.seed}
        return settings | data | {"mean": list(self.mean), "std": list(self.std)}
