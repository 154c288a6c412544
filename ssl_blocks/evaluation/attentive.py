"""Attentive probe: a learned query looks at all places of frozen features, and a linear classifier at what it saw."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_blocks.data import FileSplit, ImageSplit
from ssl_blocks.doors import checked
from ssl_blocks.evaluation.extract import Extractor
from ssl_blocks.evaluation.labelled import Labelled, read_images
from ssl_blocks.evaluation.pooling import AllPlaces
from ssl_blocks.evaluation.protocol import CannotScoreError
from ssl_blocks.evaluation.protocols.attentive import AttentiveSettings
from ssl_blocks.evaluation.sweep import HELD_OUT, INITIAL, SweepScore, descend, sweep
from ssl_blocks.randomness import seeded_generator

MOST_KEPT = 2**29  # values of all places that are kept: 2 GiB; of more, every epoch encodes anew


@checked
class AttentiveHead(nn.Module):
    """Pool places by cross-attention of a learned query, and classify what comes out.

    CAPI (Darcet et al. 2025, Sec. 4.1) and AIM (El-Nouby et al. 2024, Sec. 4.1) probe so; V-JEPA (Bardes et al. 2024)
    puts a feed-forward layer behind it. Values are the places themselves, normalised, so that heads look at parts of
    them, and nothing but keys, query and classifier is learned.

    Args:
        dim: width of a place.
        num_classes: of the classifier.
        heads: of attention; must divide ``dim``.
        generator: source of the first weights, on the CPU; ``None`` uses torch's default.

    Raises:
        ValueError: if the heads do not divide the width.

    Examples:
        >>> AttentiveHead(dim=8, num_classes=3, heads=2)(torch.zeros(5, 16, 8)).shape
        torch.Size([5, 3])
    """

    def __init__(self, *, dim: int, num_classes: int, heads: int = 4, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads={heads} must be at least 1 and divide the {dim} features of a place")
        self.heads, self.num_classes = heads, num_classes
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.key = nn.Parameter(torch.randn(dim, dim, generator=generator) * dim**-0.5)
        self.query = nn.Parameter(torch.randn(heads, dim // heads, generator=generator) * 0.02)
        self.weight = nn.Parameter(torch.zeros(num_classes, dim))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def attention(self, places: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n"]:
        """How much each head looks at each place, ``[B, H, N]``: shares of 1."""
        keys = self._by_head(F.linear(self.norm(places), self.key))
        scores: Tensor = torch.einsum("bnhc,hc->bhn", keys, self.query) * keys.shape[-1] ** -0.5
        return scores.softmax(-1)

    def _by_head(self, places: Tensor) -> Tensor:
        return places.reshape(*places.shape[:2], self.heads, -1)

    def forward(self, places: Float[Tensor, "b n d"]) -> Float[Tensor, "b k"]:
        """Logits ``[B, K]`` of places ``[B, N, D]``."""
        values = self._by_head(self.norm(places))
        seen = torch.einsum("bhn,bnhc->bhc", self.attention(places), values).flatten(1)
        return F.linear(seen, self.weight, self.bias)


@checked
def attentive_probe(
    extractor: Extractor,
    data: Labelled,
    *,
    settings: AttentiveSettings | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SweepScore:
    """Train an attentive head on the places of a frozen encoder, and score it on the test images.

    Of several learning rates the one is taken whose head did best on images held out of train; it is trained again on
    all of train. Places are made once and kept, where they fit into 2 GiB, and else anew in every epoch.

    Args:
        extractor: of an encoder of tokens or regions, which stays as it is.
        data: labelled images.
        settings: ``None`` means the defaults.
        seed: decides first weights, order and what is held out.
        progress: whether to show a bar.

    Raises:
        CannotScoreError: if the encoder has no places, as raw pixels, or train has one class.
        ValueError: if the encoder cannot take the images, or features are not finite.
    """
    settings = settings or AttentiveSettings()
    if data.num_classes < 2:
        raise CannotScoreError("train has one class: there is nothing to tell apart")
    try:
        reader = AllPlaces(extractor.encoder)
    except ValueError as error:
        raise CannotScoreError(f"{error} to look at") from None
    places = _Places(extractor, reader, data, settings)
    return sweep(
        lambda lr, index, held: places.classify(places.fit(index, lr, seed, progress), held),
        settings.lrs,
        data.train_labels,
        data.test_labels,
        validation=settings.validation,
        num_classes=data.num_classes,
        generator=seeded_generator("cpu", seed, HELD_OUT),
    )


class _Places:
    """Places of images, kept or made anew, and heads that are trained on them."""

    def __init__(self, extractor: Extractor, reader: AllPlaces, data: Labelled, settings: AttentiveSettings) -> None:
        self.extractor, self.reader = replace(extractor, encoder=reader), reader
        self.data, self.settings = data, settings
        one = self.extractor(data.train.read(torch.tensor([0])))
        fits = (len(data.train) + len(data.test)) * one.shape[1] <= MOST_KEPT
        self.kept = [self._make(split, torch.arange(len(split))) for split in (data.train, data.test)] if fits else None

    def _make(self, split: ImageSplit | FileSplit, index: Tensor) -> Tensor:
        return torch.cat([self.extractor(part) for part in read_images(split, index)])

    def of(self, index: Int[Tensor, " k"], *, is_test: bool) -> Float[Tensor, "k n d"]:
        """Places of images of a split."""
        split = self.data.test if is_test else self.data.train
        flat = self._make(split, index) if self.kept is None else self.kept[is_test][index]
        return self.reader.grouped(flat.to(self.extractor.device))

    def fit(self, index: Tensor, lr: float, seed: int, progress: bool) -> AttentiveHead:
        """Train a head on some images of train by AdamW, with a warm-up and half a cosine."""
        settings, device, labels = self.settings, self.extractor.device, self.data.train_labels[index]
        classes, generator = self.data.num_classes, seeded_generator("cpu", seed, INITIAL)
        head = AttentiveHead(dim=self.reader.width, num_classes=classes, heads=settings.heads, generator=generator)
        optimizer = torch.optim.AdamW(head.to(device).parameters(), lr=lr, weight_decay=settings.weight_decay)

        def loss_of(places: Tensor, epoch: int) -> Tensor:
            return F.cross_entropy(head(self.of(index[places], is_test=False)), labels[places].to(device))

        batch = min(settings.batch_size, len(index))
        warmup = round(settings.warmup * (len(index) // batch * settings.epochs))
        how = {"num": len(index), "batch": batch, "epochs": settings.epochs, "warmup_steps": warmup, "seed": seed}
        descend("attentive probe", loss_of, optimizer, **how, progress=progress)
        return head.eval()

    @torch.no_grad()
    def classify(self, head: AttentiveHead, index: Tensor | None) -> Int[Tensor, " n"]:
        """Classes that a head gives to images of train, or to all of test."""
        is_test, places = index is None, torch.arange(len(self.data.test)) if index is None else index
        parts = torch.split(places, self.settings.batch_size)
        return torch.cat([head(self.of(part, is_test=is_test)).argmax(1).cpu() for part in parts])
