"""Linear probe: a linear classifier on frozen features, trained by LARS."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_blocks.bounds import Seed
from ssl_blocks.data import RandomResizedCropFlip
from ssl_blocks.doors import checked
from ssl_blocks.engine.settings import fitting_warmup
from ssl_blocks.evaluation.checks import check_splits
from ssl_blocks.evaluation.extract import Extractor
from ssl_blocks.evaluation.labelled import Labelled, read_images
from ssl_blocks.evaluation.protocols.probe import LinearSettings
from ssl_blocks.evaluation.sweep import CROPS, HELD_OUT, INITIAL, SweepScore, accuracy, descend, hold_out
from ssl_blocks.randomness import seeded_generator

CROPS_AT_A_TIME = 512


@checked
def linear_probe(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    *,
    settings: LinearSettings | None = None,
    seed: Seed = 0,
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


@checked
def augmented_linear_probe(
    extractor: Extractor,
    data: Labelled,
    *,
    settings: LinearSettings | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> SweepScore:
    """Train a linear classifier on features of randomly cropped and mirrored images, encoded anew in every epoch.

    As `linear_probe` otherwise; the seed decides crops, too. A step's images are encoded in parts, and its features are
    one batch; test images are encoded as they are.

    Raises:
        ValueError: if the encoder cannot take the images, its features are not finite, or files cannot be read.
    """
    settings, train = settings or LinearSettings(), data.train
    crop = RandomResizedCropFlip((train.shape.height, train.shape.width), scale=settings.crop_scale)

    def crops(index: Tensor, epoch: int) -> Iterator[Tensor]:
        for number, images in enumerate(read_images(train, index, chunk=CROPS_AT_A_TIME)):
            generator = seeded_generator("cpu", seed, CROPS, epoch, int(index[0]), number)
            yield crop(images.cpu().float(), generator=generator).round().to(images.dtype)

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
        decay, trust = settings.weight_decay, settings.trust_coefficient
        optimizer = Lars(self.heads, rates, momentum=settings.momentum, weight_decay=decay, trust=trust)

        def loss_of(index: Tensor, epoch: int) -> Tensor:
            logits = self.heads(features_of(index, epoch).to(self.device))
            return head_loss(logits, self.labels[index].to(self.device), self.is_seen[:, index].to(self.device))

        steps = num // batch
        warmup = fitting_warmup(round(steps * settings.warmup_epochs), num_steps=steps * settings.epochs)
        how = {"num": num, "batch": batch, "epochs": settings.epochs, "warmup_steps": warmup, "seed": self.seed}
        self.heads.train()
        descend("linear probe", loss_of, optimizer, **how, progress=progress)
        self.heads.eval()

    def score(self, features_of: Callable[[Tensor], Tensor], test: Tensor, test_labels: Tensor) -> SweepScore:
        """Choose a rate on what was held out, and score it on the test features ``[M, D]``."""
        chosen = 0
        validation: tuple[float, ...] = ()
        if self.sweeps:
            choosing = self.heads.predict(features_of(self.held_out))[len(self.lrs) :]
            truth = self.labels[self.held_out]
            validation = tuple(accuracy(head, truth) for head in choosing)
            chosen = validation.index(max(validation))
        share = accuracy(self.heads.predict(test)[chosen], test_labels)
        return SweepScore(share, self.lrs[chosen], self.lrs, validation, self.heads.num_classes)


class LinearHeads(nn.Module):
    """Linear classifiers that start alike and share one batch norm without scale and shift.

    MAE, appendix A.1: the norm takes the scale out of features, so that one learning rate suits them all. First weights
    are N(0, 0.01²), drawn on the CPU.

    Examples:
        >>> LinearHeads(dim=4, num_classes=3, num_heads=2)(torch.randn(5, 4)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        num_heads: int,
        normalize: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_heads = num_classes, num_heads
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6) if normalize else nn.Identity()
        weight = 0.01 * torch.randn(num_classes, dim, generator=generator)
        self.weights = nn.Parameter(weight.repeat(num_heads, 1, 1))
        self.biases = nn.Parameter(torch.zeros(num_heads, num_classes))

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "h b k"]:
        """Logits of every head, ``[H, B, K]``."""
        x = F.linear(self.norm(features), self.weights.flatten(0, 1), self.biases.flatten())
        return x.view(-1, self.num_heads, self.num_classes).transpose(0, 1)

    @torch.no_grad()
    def predict(self, features: Float[Tensor, "n d"], *, chunk: int = 16384) -> Int[Tensor, "h n"]:
        """Classes that every head gives to features ``[N, D]``, on the CPU."""
        rows = [self(part.to(self.biases.device)).argmax(2).cpu() for part in torch.split(features, chunk)]
        return torch.cat(rows, dim=1)


def head_loss(
    logits: Float[Tensor, "h b k"], labels: Int[Tensor, " b"], is_seen: Bool[Tensor, "h b"]
) -> Float[Tensor, ""]:
    """Sum over heads of the mean cross entropy of the images that each head may see.

    A sum, so that no head's gradient depends on how many others there are.

    Examples:
        >>> head_loss(torch.zeros(2, 3, 4), torch.tensor([0, 1, 2]), torch.ones(2, 3, dtype=torch.bool))
        tensor(2.7726)
    """
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    losses = losses.view(is_seen.shape) * is_seen
    total: Tensor = (losses.sum(1) / is_seen.sum(1).clamp(min=1)).sum()
    return total


class Lars(torch.optim.Optimizer):
    """LARS as in the official code of MoCo v3 and MAE, of linear heads: a head moves by norms and a rate of its own.

    A weight matrix moves by ``lr * m``, where m follows ``q * (gradient + weight_decay * w)`` with momentum, and the
    trust ratio q is ``trust * |w| / |gradient + weight_decay * w|``, or 1 where a norm is 0. Biases neither decay nor
    have such a ratio. No Nesterov. All heads move at once; a schedule sets the common factor of their ``lrs``.
    """

    def __init__(
        self,
        heads: LinearHeads,
        lrs: Sequence[float],
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        settings = {"momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__([heads.weights, heads.biases], {"lr": 1.0, **settings})
        self.lrs = torch.tensor(lrs, device=heads.biases.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all heads by their gradients."""
        (group,) = self.param_groups
        weights, biases = group["params"]
        update = weights.grad.add(weights, alpha=group["weight_decay"])
        norm, length = (x.norm(dim=(1, 2), keepdim=True) for x in (weights, update))
        update *= torch.where((norm > 0) & (length > 0), group["trust"] * norm / length, 1.0)
        lrs = group["lr"] * self.lrs[:, None]
        self._move(weights, update, lrs[..., None], group["momentum"])
        self._move(biases, biases.grad, lrs, group["momentum"])

    def _move(self, parameter: Tensor, update: Tensor, lrs: Tensor, momentum: float) -> None:
        moved = self.state[parameter].setdefault("moved", torch.zeros_like(parameter))
        parameter.sub_(moved.mul_(momentum).add_(update) * lrs)
