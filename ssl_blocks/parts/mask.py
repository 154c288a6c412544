"""Mask builders say who may attend to whom."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F

from ssl_blocks.values import AttentionMasks, Serialization

PREFIX_STEP = -1


@runtime_checkable
class MaskBuilder(Protocol):
    """Derives the three attention masks of a serialization."""

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
        num_prefix: int,
        predict_first: bool = False,
    ) -> AttentionMasks:
        """Build the masks; one for all images where steps have the same size in each."""
        step = serialization.step
        if serialization.step_sizes is not None:
            step = step[:1]
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
