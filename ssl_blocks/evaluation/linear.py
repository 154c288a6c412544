"""Linear probe: a linear classifier on frozen features, trained by LARS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

from ssl_blocks.data import FileSplit, ImageSplit, RandomResizedCropFlip
from ssl_blocks.encoders import FeatureEncoder
from ssl_blocks.engine.optimizers import warmup_cosine
from ssl_blocks.evaluation.accuracy import accuracy
from ssl_blocks.evaluation.checks import check_classes, check_labels, check_same_width, labels_of
from ssl_blocks.evaluation.features import encoder_features
from ssl_blocks.evaluation.heads import LinearHeads, head_loss, lars
from ssl_blocks.evaluation.sweep import SweepScore, check_candidates, hold_out
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.randomness import seeded_generator

IMAGENET_IMAGES = 1_281_167
INITIAL, HELD_OUT, ORDER, CROPS = range(4)  # what a generator is for


@dataclass(frozen=True)
class LinearSettings:
    """How a linear probe is trained; the defaults are those of RandSAC, Sec. 5.1 and Table 18.

    Args:
        lrs: base learning rates that are trained side by side; the rate is ``lr * batch / 256``. Of several, the one
            that does best on images held out of train is used.
        batch_size: images per step, or all of train where it has fewer.
        epochs: passes over train; images that fill no batch are left out of an epoch.
        warmup_epochs: of the linear warm-up, counted in.
        weight_decay: of the weights.
        momentum: of LARS.
        normalize: whether features are batch-normalised, without scale and shift.
        validation: share of each class that is held out where there are several rates.
        crop_scale: smallest and largest area of random crops, where features are anew in every epoch.
        seed: decides first weights, order, crops, and what is held out.

    Raises:
        ValueError: if a number is out of range.
    """

    lrs: tuple[float, ...] = (0.1,)
    batch_size: int = 16384
    epochs: int = 90
    warmup_epochs: float | int = 10
    weight_decay: float = 0.0
    momentum: float = 0.9
    normalize: bool = True
    validation: float = 0.1
    crop_scale: tuple[float, float] = (0.08, 1.0)
    seed: int = 0

    @classmethod
    def for_images(cls, num_images: int, **others: Any) -> "LinearSettings":
        """Settings that move weights as far on a small train set as RandSAC's do on ImageNet.

        LARS moves a weight by a share of its norm that depends on the rate alone, so with few steps the paper's rate
        ends near the start. Rates around ``0.1 * 1281167 / num_images`` make up for that, of which one is chosen on
        images held out, and a batch of at most a 16th of train makes steps small enough.

        Args:
            num_images: of train.
            **others: fields to set otherwise; ``lrs`` and ``batch_size`` may be among them.

        Examples:
            >>> settings = LinearSettings.for_images(50_000)
            >>> settings.batch_size, [round(lr, 1) for lr in settings.lrs]
            (3125, [0.9, 2.6, 7.7, 25.6])
        """
        center = cls.lrs[0] * IMAGENET_IMAGES / num_images
        batch_size = min(cls.batch_size, max(1, num_images // 16))
        return cls(**{"lrs": (center / 3, center, center * 3, center * 10), "batch_size": batch_size, **others})

    def __post_init__(self) -> None:
        check_candidates("lrs", self.lrs, self.validation)
        if min(self.batch_size, self.epochs) < 1:
            raise ValueError(f"batch_size={self.batch_size} and epochs={self.epochs} must be at least 1")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be at least 0 and below epochs={self.epochs}")
        if self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"weight_decay={self.weight_decay} must not be negative, and momentum={self.momentum} within [0, 1)"
            )
        RandomResizedCropFlip(1, scale=self.crop_scale)  # refuses a wrong range


def linear_probe(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    *,
    settings: LinearSettings | None = None,
    device: torch.device | str = "cpu",
) -> SweepScore:
    """Train a linear classifier on features that were extracted once, and score it on the test features.

    With several learning rates, two classifiers per rate are trained in the same pass: one without the images held
    out, which chooses the rate, and one with all, which is scored. Test labels meet the chosen one alone.

    Args:
        train: ``[N, D]`` features.
        train_labels: ``[N]`` class indices; the head has one class more than the highest.
        test: ``[M, D]``.
        test_labels: ``[M]`` class indices.
        settings: ``None`` means RandSAC's.
        device: where the classifier is trained.

    Returns:
        Accuracy on the test features, and how the learning rate was chosen.

    Raises:
        ValueError: if shapes do not fit together, labels are missing, a test label is unknown to the head, or the
            warm-up leaves no step.

    Examples:
        >>> x, y = torch.tensor([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]]), torch.tensor([0, 0, 1, 1])
        >>> linear_probe(x, y, x, y, settings=LinearSettings(lrs=(1.0,), epochs=20, warmup_epochs=1)).accuracy
        1.0
    """
    settings = settings or LinearSettings()
    check_labels("train_labels", train, train_labels)
    check_labels("test_labels", test, test_labels)
    check_same_width("test", test, train)
    train_labels, num_classes = train_labels.cpu(), int(train_labels.max()) + 1
    check_classes("train_labels", train_labels, num_classes)
    check_classes("test_labels", test_labels, num_classes)
    train, test = (x.detach().to(device, torch.float32) for x in (train, test))
    probe = _Probe(settings, train.shape[1], num_classes, train_labels, device)
    probe.fit(lambda index, epoch: train[index.to(device)])
    return probe.score(lambda index: train[index.to(device)], test, test_labels)


def augmented_linear_probe(
    encoder: FeatureEncoder,
    train: ImageSplit | FileSplit,
    test: ImageSplit | FileSplit,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    settings: LinearSettings | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    progress: bool = False,
) -> SweepScore:
    """Train a linear classifier on features of randomly cropped and mirrored images, encoded anew in every epoch.

    As `linear_probe` otherwise. A step's images are encoded in parts, and its features are one batch.

    Args:
        encoder: whose module lies on ``device``; it is left as it is, in every respect.
        train: images and labels.
        test: images and labels; they are encoded as they are.
        mean: one number per channel on the 0..1 scale, as in pretraining.
        std: the same.
        settings: ``None`` means RandSAC's.
        tokenizer: cuts the images as pretraining did, where it leaves pixels out.
        device: where the encoder lies.
        autocast_dtype: its precision under autocast; ``None`` switches autocast off.
        progress: whether to show a bar.

    Raises:
        ValueError: if labels are missing, a test label is unknown to the head, the encoder cannot take the images,
            its features are not finite, or files cannot be read.
    """
    settings = settings or LinearSettings()
    train_labels, test_labels = labels_of("train", train), labels_of("test", test)
    num_classes = int(train_labels.max()) + 1
    check_classes("labels of test", test_labels, num_classes)
    options: dict[str, Any] = {"mean": mean, "std": std, "tokenizer": tokenizer}
    options |= {"device": device, "autocast_dtype": autocast_dtype}
    crop = RandomResizedCropFlip((train.shape.height, train.shape.width), scale=settings.crop_scale)

    def read(split: ImageSplit | FileSplit, index: Tensor) -> Tensor:
        images = split.read(index).cpu()
        if len(images) != len(index):
            raise ValueError("corrupt='error' is needed here: an image left out would put labels out of step")
        return images

    def encode_crops(index: Tensor, epoch: int) -> Tensor:
        rows = []
        for number, part in enumerate(torch.split(index, 512)):
            generator = seeded_generator("cpu", settings.seed, CROPS, epoch, int(index[0]), number)
            images = crop(read(train, part).float(), generator=generator).round().to(torch.uint8)
            rows.append(encoder_features(encoder, images, **options))
        return torch.cat(rows)

    def encode(split: ImageSplit | FileSplit, index: Tensor) -> Tensor:
        return torch.cat([encoder_features(encoder, read(split, part), **options) for part in torch.split(index, 4096)])

    probe = _Probe(settings, encoder.dim, num_classes, train_labels.cpu(), device)
    probe.fit(encode_crops, progress=progress)
    return probe.score(lambda index: encode(train, index), encode(test, torch.arange(len(test))), test_labels)


class _Probe:
    """Heads for every learning rate, half of which see no image that is held out."""

    def __init__(
        self,
        settings: LinearSettings,
        dim: int,
        num_classes: int,
        labels: Tensor,
        device: torch.device | str,
    ) -> None:
        self.settings, self.labels, self.device = settings, labels, device
        self.lrs = settings.lrs
        self.sweeps = len(self.lrs) > 1
        self.held_out = labels[:0]
        if self.sweeps:
            self.held_out = hold_out(labels, settings.validation, seeded_generator("cpu", settings.seed, HELD_OUT))
        sets = 2 if self.sweeps else 1  # those that are scored, and those that choose
        self.is_seen = torch.ones(sets * len(self.lrs), len(labels), dtype=torch.bool)
        self.is_seen[len(self.lrs) :, self.held_out] = False
        self.heads = LinearHeads(
            dim=dim,
            num_classes=num_classes,
            num_heads=len(self.is_seen),
            normalize=settings.normalize,
            generator=seeded_generator("cpu", settings.seed, INITIAL),
        ).to(device)

    def fit(self, features_of: Callable[[Tensor, int], Tensor], *, progress: bool = False) -> None:
        """Train all heads.

        Args:
            features_of: from places in train and the epoch to their features.
            progress: whether to show a bar.
        """
        settings, num = self.settings, len(self.labels)
        batch = min(settings.batch_size, num)
        rates = [lr * batch / 256 for lr in self.lrs] * (len(self.is_seen) // len(self.lrs))
        optimizer = lars(self.heads, rates, momentum=settings.momentum, weight_decay=settings.weight_decay)
        schedule = warmup_cosine(
            optimizer,
            num_steps=num // batch * settings.epochs,
            warmup_steps=round(num // batch * settings.warmup_epochs),
        )
        self.heads.train()
        step = 0
        for epoch in track(range(settings.epochs), "linear probe", disable=not progress, transient=True):
            order = torch.randperm(num, generator=seeded_generator("cpu", settings.seed, ORDER, epoch))
            for index in torch.split(order[: num // batch * batch], batch):
                schedule.step_update(step)
                logits = self.heads(features_of(index, epoch).to(self.device))
                loss = head_loss(logits, self.labels[index].to(self.device), self.is_seen[:, index].to(self.device))
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()  # type: ignore[no-untyped-call]
                step += 1
        self.heads.eval()

    def score(self, features_of: Callable[[Tensor], Tensor], test: Tensor, test_labels: Tensor) -> SweepScore:
        """Choose a rate on what was held out, and score it on the test features.

        Args:
            features_of: from places in train to their features.
            test: ``[M, D]``.
            test_labels: ``[M]``.
        """
        num_classes, chosen = self.heads.num_classes, 0
        validation: tuple[float, ...] = ()
        if self.sweeps:
            choosing = self.heads.predict(features_of(self.held_out))[len(self.lrs) :]
            truth = self.labels[self.held_out]
            validation = tuple(accuracy(head, truth, num_classes=num_classes) for head in choosing)
            chosen = max(range(len(self.lrs)), key=lambda place: validation[place])
        predicted = self.heads.predict(test)[chosen]
        return SweepScore(
            accuracy=accuracy(predicted, test_labels, num_classes=num_classes),
            chosen=self.lrs[chosen],
            candidates=self.lrs,
            validation=validation,
            num_classes=num_classes,
        )
