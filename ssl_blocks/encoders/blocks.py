"""The one loop over blocks that all adapters share."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssl_blocks.parts.attention import run_block


def run_blocks(
    blocks: Iterable[Callable[..., Tensor]],
    x: Float[Tensor, "b s d"],
    mask: Bool[Tensor, "_ 1 s s"] | None,
    *,
    checkpointing: bool = False,
) -> tuple[Float[Tensor, "b s d"], ...]:
    """Run blocks that take ``attn_mask`` and keep the residual stream after each.

    Args:
        blocks: called as ``block(x, attn_mask=mask)``.
        x: ``[B, s, D]``.
        mask: ``[1|B, 1, s, s]``, ``True`` = may attend, or ``None``.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """
    recompute = checkpointing and torch.is_grad_enabled()
    hidden = []
    for block in blocks:
        if recompute:
            # Dynamo can enter no function mode inside a checkpoint, so there attention stays with torch
            run = block if torch.compiler.is_compiling() else partial(run_block, block)
            x = checkpoint(run, x, attn_mask=mask, use_reentrant=False)
        else:
            x = run_block(block, x, attn_mask=mask)
        hidden.append(x)
    return tuple(hidden)
