"""Linear probe: a linear classifier on frozen features, trained by LARS."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

from ssl_blocks.data import RandomResizedCropFlip
from ssl_blocks.engine.optimizers import warmup_cosine
from ssl_blocks.evaluation.accuracy import accuracy
from ssl_blocks.evaluation.checks import check_splits
from ssl_blocks.evaluation.extract import Extractor
from ssl_blocks.evaluation.labelled import Labelled, read_images
from ssl_blocks.evaluation.linear_heads import LinearHeads, head_loss, lars
from ssl_blocks.evaluation.protocols.probe import LinearSettings
from ssl_blocks.evaluation.sweep import SweepScore, hold_out
from ssl_blocks.randomness import seeded_generator

INITIAL, HELD_OUT, ORDER, CROPS = range(4)  # what a generator is for
CROPS_AT_A_TIME = 512


def linear_probe(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    *,
    settings: LinearSettings | None = None,
    seed: int = 0,
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
        settings: ``None`` means RandSAC's, made to fit the number of images.
        seed: decides first weights, order, and what is held out.
        device: where the classifier is trained.

    Returns:
        Accuracy on the test features, and how the learning rate was chosen.

    Raises:
        ValueError: if shapes do not fit together, features are not finite, labels are missing, a test label is unknown
            to the head, or the warm-up leaves no step.

    Examples:
        >>> x, y = torch.tensor([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]]), torch.tensor([0, 0, 1, 1])
        >>> settings = LinearSettings(lrs=(1.0,), batch_size=4, epochs=20, warmup_epochs=1)
        >>> linear_probe(x, y, x, y, settings=settings).accuracy
        1.0
    """
    num_classes = check_splits(train, train_labels, test, test_labels)
    train, test = (x.detach().to(device, torch.float32) for x in (train, test))
    probe = _Probe(settings or LinearSettings(), train.shape[1], num_classes, train_labels.cpu(), device, seed)
    probe.fit(lambda index, epoch: train[index.to(device)])
    return probe.score(lambda index: train[index.to(device)], test, test_labels)


def augmented_linear_probe(
    extractor: Extractor,
    data: Labelled,
    *,
    settings: LinearSettings | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SweepScore:
    """Train a linear classifier on features of randomly cropped and mirrored images, encoded anew in every epoch.

    As `linear_probe` otherwise. A step's images are encoded in parts, and its features are one batch.

    Args:
        extractor: makes the features; its encoder is left as it is.
        data: images and labels; those of test are encoded as they are.
        settings: ``None`` means RandSAC's, made to fit the number of images.
        seed: decides crops, too.
        progress: whether to show a bar.

    Raises:
        ValueError: if the encoder cannot take the images, its features are not finite, or files cannot be read.
    """
    settings, train = settings or LinearSettings(), data.train
    crop = RandomResizedCropFlip((train.shape.height, train.shape.width), scale=settings.crop_scale)

    def crops(index: Tensor, epoch: int) -> Iterator[Tensor]:
        for number, images in enumerate(read_images(train, index, chunk=CROPS_AT_A_TIME)):
            generator = seeded_generator("cpu", seed, CROPS, epoch, int(index[0]), number)
            yield crop(images.cpu().float(), generator=generator).round().to(torch.uint8)

    probe = _Probe(settings, extractor.encoder.dim, data.num_classes, data.train_labels, extractor.device, seed)
    probe.fit(lambda index, epoch: extractor.of_parts(crops(index, epoch)), progress=progress)
    test = extractor.of_parts(read_images(data.test, torch.arange(len(data.test))))
    return probe.score(lambda index: extractor.of_parts(read_images(train, index)), test, data.test_labels)


class _Probe:
    """Heads for every learning rate, half of which see no image that is held out."""

    def __init__(
        self,
        settings: LinearSettings,
        dim: int,
        num_classes: int,
        labels: Tensor,
        device: torch.device | str,
        seed: int,
    ) -> None:
        self.settings, self.labels, self.device, self.seed = settings, labels, device, seed
        self.lrs = settings.rates(len(labels))
        self.sweeps = len(self.lrs) > 1
        self.held_out = labels[:0]
        if self.sweeps:
            self.held_out = hold_out(labels, settings.validation, seeded_generator("cpu", seed, HELD_OUT))
        sets = 2 if self.sweeps else 1  # those that are scored, and those that choose
        self.is_seen = torch.ones(sets * len(self.lrs), len(labels), dtype=torch.bool)
        self.is_seen[len(self.lrs) :, self.held_out] = False
        self.heads = LinearHeads(
            dim=dim,
            num_classes=num_classes,
            num_heads=len(self.is_seen),
            normalize=settings.normalize,
            generator=seeded_generator("cpu", seed, INITIAL),
        ).to(device)

    def fit(self, features_of: Callable[[Tensor, int], Tensor], *, progress: bool = False) -> None:
        """Train all heads; ``features_of`` makes features of places in train, anew in every epoch."""
        settings, num = self.settings, len(self.labels)
        batch = settings.batch(num)
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
            order = torch.randperm(num, generator=seeded_generator("cpu", self.seed, ORDER, epoch))
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
        """Choose a rate on what was held out, and score it on the test features ``[M, D]``."""
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
