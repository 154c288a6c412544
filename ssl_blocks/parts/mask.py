"""Mask builders say who may attend to whom."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from ssl_blocks.bounds import Count, Whole
from ssl_blocks.doors import checked
from ssl_blocks.values import AttentionMasks, Serialization

PREFIX_STEP = -1


@runtime_checkable
class MaskBuilder(Protocol):
    """Derives the attention masks of a serialization."""

    def __call__(
        self,
        serialization: Serialization,
        encoded: slice,
        predicted: slice,
        num_prefix: int,
        predict_first: bool = False,
    ) -> AttentionMasks:
        """Return bool masks, ``True`` = may attend.

        Args:
            serialization: order and step of the tokens.
            encoded: slots that enter the encoder.
            predicted: slots that the decoder gets as queries.
            num_prefix: class and register tokens in front of the encoded ones.
            predict_first: whether tokens of the first step are predicted too.
        """
        ...


@checked
class SegmentCausalMask:
    """Let each token see its own segment and those before it; let predictions see only those before.

    RandSAC, Sec. 3.2. Encoder and decoder self-attention allow ``step_k <= step_q``, cross-attention
    ``step_k < step_q``. Prefix tokens carry step -1: all see them, they see only each other, for a class token
    that saw patches would pass on the future from the second layer on. Queries of a step that is not predicted
    are seen by no one but themselves, so the full-length path equals the sliced one.

    Examples:
        >>> s = Serialization(order=torch.tensor([[0, 1, 2]]), step=torch.tensor([[0, 1, 2]]), step_sizes=(1, 1, 1))
        >>> SegmentCausalMask()(s, slice(0, 2), slice(1, 3), num_prefix=0).memory[0, 0].int()
        tensor([[1, 0],
                [1, 1]], dtype=torch.int32)
    """

    def __call__(
        self,
        serialization: Serialization,
        encoded: slice,
        predicted: slice,
        num_prefix: Whole,
        predict_first: bool = False,
    ) -> AttentionMasks:
        """Build the masks; one for all images where steps have the same size in each."""
        step = self._steps(serialization, predict_first)
        source = F.pad(step[:, encoded], (num_prefix, 0), value=PREFIX_STEP)
        target = step[:, predicted]
        seen = target[:, None, :] <= target[:, :, None]
        if not predict_first:
            itself = torch.eye(target.shape[1], dtype=torch.bool, device=target.device)
            seen = itself | (seen & (target > 0)[:, None, :])
        return AttentionMasks(
            source=(source[:, None, :] <= source[:, :, None])[:, None],
            target=seen[:, None],
            memory=(source[:, None, :] < target[:, :, None])[:, None],
        )

    def _steps(self, serialization: Serialization, predict_first: bool) -> Int[Tensor, "_ n"]:
        return _steps(serialization)


@checked
class PrefixCausalMask(SegmentCausalMask):
    """As `SegmentCausalMask`, but the first steps are one prefix that sees itself whole (AIM, Sec. 3.2).

    Tokens of the prefix are given, and none of them is predicted. A prefix of another length in every image is a
    first segment of that size under `SegmentCausalMask`.

    Args:
        num_steps: steps that make up the prefix, from 1.

    Raises:
        ValueError: if there is no such step, or (when called) the first step shall be predicted, or the prefix is all
            that there is.

    Examples:
        >>> s = Serialization(order=torch.tensor([[0, 1, 2]]), step=torch.tensor([[0, 1, 2]]), step_sizes=(1, 1, 1))
        >>> PrefixCausalMask(num_steps=2)(s, slice(0, 2), slice(1, 3), num_prefix=0).source[0, 0].int()
        tensor([[1, 1],
                [1, 1]], dtype=torch.int32)
    """

    def __init__(self, *, num_steps: Count) -> None:
        self.num_given = num_steps

    def _steps(self, serialization: Serialization, predict_first: bool) -> Int[Tensor, "_ n"]:
        if predict_first:
            raise ValueError("predict_first=True does not go with PrefixCausalMask: its prefix is given")
        sizes = serialization.step_sizes
        if sizes is not None and len(sizes) <= self.num_given:
            raise ValueError(f"num_steps={self.num_given} must leave something to predict of the {len(sizes)} steps")
        return (_steps(serialization) - self.num_given + 1).clamp(min=0)


@checked
class FullMask:
    """Let all see all that is given: what is predicted is not encoded, or only as a mask token (MAE, SimMIM, BEiT).

    The first step is given, and all others are predicted from it at once. Where nothing but a first step of fixed size
    is encoded, nothing needs masking in the encoder. Queries see each other and all that is given.

    Args:
        feedback: whether given tokens see the queries beside them in the encoder: mask tokens of SimMIM and BEiT. For
            `QueryReader` only.

    Raises:
        ValueError: when called, if the first step shall be predicted.

    Examples:
        >>> s = Serialization(order=torch.tensor([[0, 1, 2]]), step=torch.tensor([[0, 1, 1]]), step_sizes=(1, 2))
        >>> masks = FullMask()(s, slice(0, 1), slice(1, 3), num_prefix=0)
        >>> masks.source, masks.memory[0, 0].int()
        (None, tensor([[1],
                [1]], dtype=torch.int32))
    """

    def __init__(self, *, feedback: bool = False) -> None:
        self.feedback = feedback

    def __call__(
        self,
        serialization: Serialization,
        encoded: slice,
        predicted: slice,
        num_prefix: Whole,
        predict_first: bool = False,
    ) -> AttentionMasks:
        """Build the masks; one for all images where steps have the same size in each."""
        if predict_first:
            raise ValueError("predict_first=True does not go with FullMask: its first step is given")
        step = _steps(serialization)
        given = F.pad(step[:, encoded], (num_prefix, 0), value=PREFIX_STEP)[:, None] <= 0  # [_, 1, s]
        asked = step[:, predicted] > 0
        itself = torch.eye(asked.shape[1], dtype=torch.bool, device=step.device)
        sizes = serialization.step_sizes
        all_given = sizes is not None and encoded.stop is not None and encoded.stop <= sizes[0]
        s, t = given.shape[-1], asked.shape[-1]
        return AttentionMasks(
            source=None if all_given else given.expand(-1, s, -1)[:, None],
            target=(asked[:, None] | itself)[:, None],
            memory=given.expand(-1, t, -1)[:, None],
            feedback=asked[:, None, None].expand(-1, -1, s, -1) if self.feedback else None,
        )


def _steps(serialization: Serialization) -> Int[Tensor, "_ n"]:
    """Steps of all images; of one where they are the same in all."""
    return serialization.step if serialization.step_sizes is None else serialization.step[:1]
