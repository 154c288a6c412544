"""The values that travel between parts: each part receives some of them and returns others."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ssl_blocks.bounds import Count, Whole
from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid


@checked
def gather_tokens(x: Shaped[Tensor, "b n *rest"], index: Int[Tensor, "b m"]) -> Shaped[Tensor, "b m *rest"]:
    """Pick tokens by position, per image.

    Args:
        x: ``[B, N, ...]`` values in raster order.
        index: ``[B, m]`` positions, in any order and number.

    Returns:
        ``[B, m, ...]``.

    Examples:
        >>> gather_tokens(torch.tensor([[10, 11, 12]]), torch.tensor([[2, 0]]))
        tensor([[12, 10]])
    """
    shape = (*index.shape, *x.shape[2:])
    return x.gather(1, index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand(shape))


@checked
@dataclass(frozen=True, eq=False)
class Segments:
    """Which segment every position belongs to, per level of a hierarchy.

    Args:
        levels: ids ``[B, N]`` int64, finest level first. Ids may have gaps: an id that no token
            carries is an empty segment and takes no part.
        counts: per level, ids lie in ``[0, count)``.
        step_sizes: tokens in each finest segment by ascending id where that is the same in every
            image (squares, tokens, subsets), else ``None`` (blobs).

    Raises:
        ValueError: if levels and counts differ in number, or levels differ in shape.

    Examples:
        >>> Segments(levels=(torch.tensor([[0, 0, 1, 1]]),), counts=(2,), step_sizes=(2, 2)).num_tokens
        4
    """

    levels: tuple[Int[Tensor, "b n"], ...]
    counts: tuple[Count, ...]
    step_sizes: tuple[Whole, ...] | None = None

    def __post_init__(self) -> None:
        if not self.levels or len(self.levels) != len(self.counts):
            raise ValueError(f"counts={self.counts} must name one count for each of the {len(self.levels)} levels")
        if self.step_sizes is not None and sum(self.step_sizes) != self.num_tokens:
            raise ValueError(f"step_sizes={self.step_sizes} must add up to the {self.num_tokens} tokens of an image")

    @property
    def num_tokens(self) -> int:
        """Tokens per image, ``N``."""
        return self.levels[0].shape[1]

    def check(self) -> None:
        """Look at the ids themselves, which makes an accelerator wait.

        Raises:
            ValueError: if an id lies outside its count, sizes are not ``step_sizes``, or a segment lies in two
                partitions.
        """
        for level, (ids, count) in enumerate(zip(self.levels, self.counts, strict=True)):
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= count:
                raise ValueError(f"ids of level {level} must lie in [0, {count}), got {low}..{high}")
        if self.step_sizes is not None:
            ids = self.levels[0]
            sizes = ids.new_zeros(ids.shape[0], self.counts[0]).scatter_add(1, ids, torch.ones_like(ids))
            if len(self.step_sizes) != self.counts[0] or bool((sizes != sizes.new_tensor(self.step_sizes)).any()):
                expected = f"step_sizes={self.step_sizes} must be the sizes in every image"
                raise ValueError(f"{expected}, but these are {sizes.tolist()}")
        for level, (fine, coarse) in enumerate(zip(self.levels[:-1], self.levels[1:], strict=True)):
            count = self.counts[level]
            parent = torch.full((fine.shape[0], count), -1, dtype=coarse.dtype, device=coarse.device)
            parent = parent.scatter(1, fine, coarse)
            if not torch.equal(gather_tokens(parent, fine), coarse):
                raise ValueError(f"levels must be nested: a segment of level {level} lies in two of level {level + 1}")


@checked
@dataclass(frozen=True, eq=False)
class Serialization:
    """A reading order of the tokens and the decoding step of each.

    Args:
        order: ``[B, N]`` int64, ``order[b, slot]`` is the raster position read at that slot.
        step: ``[B, N]`` int64 decoding step of each slot, from 0, never falling along the sequence.
        step_sizes: tokens per step where that is the same in every image, else ``None``.

    Examples:
        >>> s = Serialization(order=torch.tensor([[2, 0, 1]]), step=torch.tensor([[0, 1, 1]]), step_sizes=(1, 2))
        >>> s.take(torch.tensor([[10, 11, 12]]))
        tensor([[12, 10, 11]])
        >>> s.windows()
        (slice(0, 1, None), slice(1, 3, None))
    """

    order: Int[Tensor, "b n"]
    step: Int[Tensor, "b n"]
    step_sizes: tuple[Whole, ...] | None = None

    def __post_init__(self) -> None:
        if self.step_sizes is not None and sum(self.step_sizes) != self.num_tokens:
            raise ValueError(f"step_sizes={self.step_sizes} must add up to the {self.num_tokens} tokens of an image")

    @property
    def num_tokens(self) -> int:
        """Tokens per image, ``N``."""
        return self.order.shape[1]

    def check(self) -> None:
        """Look at order and steps themselves, which makes an accelerator wait.

        Raises:
            ValueError: if an image's order is no permutation of all positions (overlapping blocks are none), steps fall
                or begin below 0, or sizes are not ``step_sizes``.
        """
        n = self.num_tokens
        wrong = (self.order.sort(dim=1).values != torch.arange(n, device=self.order.device)).any(1)
        for image in wrong.nonzero()[:1, 0].tolist():
            named = len(set(self.order[image].tolist()))
            raise ValueError(
                f"order must name each of the {n} positions once, but image {image} names {named} of them: blocks that "
                "overlap, or leave tokens out, are no segments"
            )
        if bool((self.step.diff(dim=1) < 0).any()) or bool((self.step[:, :1] < 0).any()):
            raise ValueError("step must begin at 0 or above, and never fall along the sequence")
        if self.step_sizes is not None:
            expected = torch.arange(len(self.step_sizes)).repeat_interleave(torch.tensor(self.step_sizes))
            if len(expected) != n or not bool((self.step == expected.to(self.step.device)).all()):
                raise ValueError(f"step_sizes={self.step_sizes} must be the sizes of steps 0, 1, ... in every image")

    @property
    def rank(self) -> Int[Tensor, "b n"]:
        """Slot of every position: the inverse of ``order``."""
        slots = torch.arange(self.num_tokens, device=self.order.device).expand_as(self.order)
        return torch.empty_like(self.order).scatter(1, self.order, slots)

    def take(self, x: Shaped[Tensor, "b n *rest"], window: slice = slice(None)) -> Shaped[Tensor, "b m *rest"]:
        """Put raster values ``[B, N, ...]`` in sequence order, and keep the slots of ``window``."""
        return gather_tokens(x, self.order[:, window])

    def put(self, x: Shaped[Tensor, "b m *rest"], window: slice = slice(None)) -> Shaped[Tensor, "b n *rest"]:
        """Put the values of the slots of ``window`` back in raster order; other positions hold 0."""
        index = self.order[:, window]
        blank = x.new_zeros(x.shape[0], self.num_tokens, *x.shape[2:])
        return blank.scatter(1, index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand_as(x), x)

    def windows(self, predict_first: bool = False) -> tuple[slice, slice]:
        """The slots that enter the encoder and the slots that are predicted.

        Where steps have the same size in every image, the last step is left out of the encoder (nothing may
        see it) and the first out of the decoder. Otherwise both windows are the whole sequence, and the masks
        do the same work.

        Args:
            predict_first: also predict the first step, from prefix tokens alone.

        Returns:
            ``(encoded, predicted)``, a prefix and a suffix of the sequence.
        """
        n = self.num_tokens
        if self.step_sizes is None:
            return slice(0, n), slice(0, n)
        return slice(0, n - self.step_sizes[-1]), slice(0 if predict_first else self.step_sizes[0], n)


@checked
@dataclass(frozen=True, eq=False)
class AttentionMasks:
    """Who may attend to whom: bool, ``True`` = may attend.

    A leading 1 instead of ``B`` means that all images share the mask. ``P`` prefix tokens come before the
    ``e`` encoded ones; ``t`` tokens are predicted.

    Args:
        source: self-attention of encoded tokens ``[1|B, 1, P+e, P+e]``; ``None``: all see all.
        target: self-attention of queries ``[1|B, 1, t, t]``.
        memory: what queries may see of encoded tokens ``[1|B, 1, t, P+e]``.
        feedback: what encoded tokens may see of queries that stand beside them in the encoder ``[1|B, 1, P+e, t]``;
            ``None``: nothing.
    """

    source: Bool[Tensor, "_ 1 s s"] | None
    target: Bool[Tensor, "_ 1 t t"]
    memory: Bool[Tensor, "_ 1 t s"]
    feedback: Bool[Tensor, "_ 1 s t"] | None = None


@checked
@dataclass(frozen=True, eq=False)
class Encoded:
    """What a token encoder returns.

    Args:
        input: residual stream that enters the first block, positions and prefix in it, ``[B, P+n, D]``.
        hidden: residual stream after every block, not normalised: ``depth`` times ``[B, P+n, D]``.
        final: the model's own final norm over the last of them, ``[B, P+n, D]``.
    """

    input: Float[Tensor, "b n d"]
    hidden: tuple[Float[Tensor, "b n d"], ...]
    final: Float[Tensor, "b n d"]


@checked
@dataclass(frozen=True, eq=False)
class Regions:
    """What a region encoder returns: a map of features, and one vector for the whole image.

    Args:
        map: normalised features of every region in raster order, ``[B, R, D]``.
        pooled: features of the whole image, ``[B, D]``.
        grid: height and width of the map, ``R`` regions in all.
    """

    map: Float[Tensor, "b r d"]
    pooled: Float[Tensor, "b d"]
    grid: Grid


@checked
@dataclass(frozen=True, eq=False)
class Views:
    """Several crops of every image, the global ones first.

    Args:
        images: one ``[B, C, H, W]`` per crop; sizes may differ from crop to crop.
        num_global: how many of them are global: large, and seen by a teacher.

    Raises:
        ValueError: if there is no global view, or views differ in the number of images.

    Examples:
        >>> Views((torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)), num_global=1).batch
        2
    """

    images: tuple[Float[Tensor, "b c _ _"], ...]
    num_global: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_global <= len(self.images):
            raise ValueError(
                f"num_global={self.num_global} must be at least 1 and at most the {len(self.images)} views"
            )
        if len({len(view) for view in self.images}) > 1:
            raise ValueError(f"views must hold the same images, got {[len(view) for view in self.images]} of them")

    @property
    def batch(self) -> int:
        """Number of images, ``B``."""
        return len(self.images[0])


@checked
@dataclass(frozen=True)
class Progress:
    """Where a training run stands, handed to an objective's ``before_step``.

    Args:
        step: optimizer steps done so far.
        epoch: epochs done so far, integer.
        num_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one epoch.
    """

    step: Whole
    epoch: Whole
    num_steps: Count
    steps_per_epoch: Whole


@checked
@dataclass(frozen=True, eq=False)
class ObjectiveOutput:
    """What an objective returns; rows are aligned and in sequence order.

    Args:
        loss: scalar, to call ``backward`` on.
        predictions: ``[B, t, P]``.
        targets: ``[B, t, P]``.
        index: ``[B, t]`` raster position that each row speaks of; several rows may speak of one, as overlapping target
            blocks do. Of `Views` positions are counted view after view, through those that the tokenizer fits.
        step: ``[B, t]`` decoding step of each row: it may see what is given, and positions of earlier steps. Blocks
            that are predicted separately from one context share a step.
        is_target: ``[B, t]``, ``True`` where the row counts in the loss.
        draw: the random choices that were used; giving them back to ``forward`` repeats the result.
        metrics: scalars worth logging, not part of the loss.
        given: ``[B, N]``, ``True`` at positions that predictions may see from the start; ``None``: those that are never
            predicted. Tokens that are neither given nor predicted are seen by nothing. ``[B, t, N]`` says of every row
            all that it may see, whatever its step: several masks of one image, a window of what was read before.
        count: what the loss was divided by, a scalar; ``None``: the number of rows that count. A training loop divides
            by it over all processes and accumulated batches.
    """

    loss: Float[Tensor, ""]
    predictions: Float[Tensor, "b t p"]
    targets: Float[Tensor, "b t p"]
    index: Int[Tensor, "b t"]
    step: Int[Tensor, "b t"]
    is_target: Bool[Tensor, "b t"]
    draw: Any
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    given: Bool[Tensor, "b n"] | Bool[Tensor, "b t n"] | None = None
    count: Shaped[Tensor, ""] | None = None

    @property
    def divisor(self) -> Shaped[Tensor, ""]:
        """What the loss was divided by: ``count``, or the number of rows that count."""
        return self.is_target.sum() if self.count is None else self.count
