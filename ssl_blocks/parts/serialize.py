"""Serializers put segments into a reading order."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from ssl_blocks.doors import checked
from ssl_blocks.parts.attention import can_be_looked_at
from ssl_blocks.randomness import check_generator, random_ranks
from ssl_blocks.values import Segments, Serialization


@runtime_checkable
class Serializer(Protocol):
    """Turns segments into an order of tokens and a step for each."""

    def __call__(self, segments: Segments, *, generator: torch.Generator | None = None) -> Serialization:
        """Return ``order`` and ``step`` of shape ``[B, N]``; tokens of a segment share a step."""
        ...


@checked
class OrderedSerializer:
    """Read segments by ascending id, partition by partition: raster order of tokens or squares; MAE's visible first.

    Examples:
        >>> segments = Segments(levels=(torch.tensor([[1, 0, 1, 0]]),), counts=(2,))
        >>> OrderedSerializer()(segments)
        Serialization(order=tensor([[1, 3, 0, 2]]), step=tensor([[0, 0, 1, 1]]), step_sizes=None)
    """

    def __call__(self, segments: Segments, *, generator: torch.Generator | None = None) -> Serialization:
        """Order the segments; nothing is drawn.

        Raises:
            ValueError: if ``segments.check()`` finds a fault (on CPU only, as an accelerator would have to wait).
        """
        _check_on_cpu(segments)
        # step_sizes go by ascending id of the finest level, which a hierarchy visits in another order
        sizes = _of_steps(segments.step_sizes)
        sizes = sizes if len(segments.levels) == 1 else _equal(sizes)
        return _serialize(segments.levels, segments.counts, sizes)


@checked
class RandomSerializer:
    """Visit partitions in random order, and the segments inside each in random order.

    RandSAC, Sec. 3.3 and 3.4. Every image gets an order of its own. Tokens of one segment share a step and are
    predicted together; empty segments are left out.

    Examples:
        >>> from ssl_blocks import Grid, SquarePartitioner
        >>> segments = SquarePartitioner(sides=(2, 4))(torch.rand(1, 3, 32, 32), Grid(8, 8))
        >>> RandomSerializer()(segments).step[0, -1].item()
        15
    """

    def __call__(self, segments: Segments, *, generator: torch.Generator | None = None) -> Serialization:
        """Draw an order.

        Args:
            segments: ids per level, finest first; each level ``[B, N]`` int64.
            generator: source of randomness on the ids' device; ``None`` uses torch's default.

        Returns:
            Serialization with ``order`` and ``step`` of shape ``[B, N]``.

        Raises:
            ValueError: if ``segments.check()`` finds a fault, such as levels that are not nested (on CPU only, as
                an accelerator would have to wait), or the generator is on another device.
        """
        batch, device = segments.levels[0].shape[0], segments.levels[0].device
        check_generator(generator, device)
        _check_on_cpu(segments)
        keys = []
        for ids, count in zip(segments.levels, segments.counts, strict=True):
            keys.append(random_ranks(batch, count, generator=generator, device=device).gather(1, ids))
        return _serialize(keys, segments.counts, _equal(_of_steps(segments.step_sizes)))


def _check_on_cpu(segments: Segments) -> None:
    if can_be_looked_at(segments.levels[0]):
        segments.check()


def _of_steps(step_sizes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Sizes of the segments that become a step: empty ones are left out."""
    return None if step_sizes is None else tuple(size for size in step_sizes if size)


def _equal(step_sizes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Sizes that hold in every order: only those of equal segments."""
    return step_sizes if step_sizes is not None and len(set(step_sizes)) == 1 else None


def _serialize(
    keys: Sequence[Int[Tensor, "b n"]], counts: tuple[int, ...], step_sizes: tuple[int, ...] | None
) -> Serialization:
    """Sort tokens by their keys, coarsest level first, and number the groups of equal keys."""
    combined = torch.zeros_like(keys[-1])
    for key, count in zip(reversed(keys), reversed(counts), strict=True):
        combined = combined * count + key
    ordered, order = combined.sort(dim=1, stable=True)
    starts = (ordered[:, 1:] != ordered[:, :-1]).long()
    step = F.pad(starts.cumsum(1), (1, 0))
    return Serialization(order=order, step=step, step_sizes=step_sizes)
