"""The one seam for attention: the same result by the kernel that is fastest here.

Blocks call ``torch.nn.functional.scaled_dot_product_attention`` and never learn of this. On CPU, bfloat16
inputs are better served by matmul, softmax, matmul (measured in docs/results.md); all else stays with torch, float16
too, whose scores could overflow before they are scaled.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ssl_blocks.bounds import Share
from ssl_blocks.doors import checked

_UNSUPPORTED = ("is_causal", "enable_gqa")


@checked
def explicit_attention(
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b h k d"],
    value: Float[Tensor, "b h k e"],
    attn_mask: Tensor | None = None,
    dropout_p: Share = 0.0,
    scale: float | None = None,
) -> Float[Tensor, "b h q e"]:
    """Compute attention in plain operations, which keep nothing but the probabilities for the backward pass.

    Args:
        query: ``[B, H, Q, d]``.
        key: ``[B, H, K, d]``.
        value: ``[B, H, K, e]``.
        attn_mask: bool (``True`` = may attend) or additive, broadcastable to ``[B, H, Q, K]``. A row that may
            attend to nothing yields 0.
        dropout_p: probability of dropping a weight.
        scale: factor on the scores; ``None`` means ``d ** -0.5``.

    Returns:
        ``[B, H, Q, e]``.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.transpose(-2, -1)
    empty = None
    if attn_mask is None:
        scores = scores * scale
    else:
        if attn_mask.dtype == torch.bool:
            attn_mask, empty = split_empty_rows(attn_mask)
            attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, float("-inf"))
        else:
            empty = (attn_mask == float("-inf")).all(-1, keepdim=True)
            attn_mask = attn_mask.masked_fill(empty, 0.0)
        # scale and mask in one pass, of which the backward pass needs only the scale
        scores = torch.add(attn_mask.to(scores.dtype), scores, alpha=scale)
    weights = scores.softmax(dim=-1)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    out = weights @ value
    if empty is None or (can_be_looked_at(empty) and not empty.any()):  # looked up where that costs nothing
        return out
    return out.masked_fill(empty, 0.0)


def can_be_looked_at(x: Tensor) -> bool:
    """Whether values are there for free: on CPU, and not while a pass is traced or only counted."""
    return x.device.type == "cpu" and type(x) is Tensor and not torch.compiler.is_compiling()


def split_empty_rows(mask: Bool[Tensor, "*b q k"]) -> tuple[Bool[Tensor, "*b q k"], Bool[Tensor, "*b q 1"]]:
    """Let rows that may attend to nothing attend to everything, and say which they were.

    Softmax over nothing is NaN; the caller sets those rows to 0 afterwards.
    """
    empty = ~mask.any(-1, keepdim=True)
    return mask | empty, empty


def additive(mask: Bool[Tensor, "*b q k"], x: Float[Tensor, "b s d"]) -> Float[Tensor, "*b q k"]:
    """What is added to the scores of blocks that get ``x``: 0 where a query may attend, and minus infinity elsewhere.

    Kernels turn a bool mask into this one by themselves, anew in every layer, and keep each for the backward pass.

    Examples:
        >>> additive(torch.tensor([[True, False]]), torch.zeros(1, 1, 1))
        tensor([[0., -inf]])
    """
    # the meta device knows no autocast
    device = x.device.type
    is_cast = not x.is_meta and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_cast else x.dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))


class _ExplicitOnCpu(TorchFunctionMode):
    """While active, bfloat16 attention on CPU runs as plain operations; every call is counted."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        self.seen = seen  # a list: Dynamo does not follow other state of a mode

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.seen.append(1)
        query = args[0] if args else kwargs["query"]
        if not _attends_in_bfloat16(query) or any(kwargs.get(name) for name in _UNSUPPORTED) or len(args) > 5:
            return func(*args, **kwargs)
        kept = {name: value for name, value in kwargs.items() if name not in _UNSUPPORTED}
        return explicit_attention(*args, **kept)


def wants_seam(x: Tensor) -> bool:
    """Whether blocks that get ``x`` may attend in bfloat16 on CPU."""
    if x.device.type != "cpu":
        return False
    return x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")


def _attends_in_bfloat16(query: Tensor) -> bool:
    """Whether torch's function would compute in bfloat16: autocast casts what a rotation left in single precision."""
    if query.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return query.dtype == torch.bfloat16


def run_block(block: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Call ``block(x, ...)`` with the attention that suits the device, the precision and the shape."""
    if not wants_seam(x):
        return block(x, *args, **kwargs)
    seen: list[int] = []
    with _ExplicitOnCpu(seen):
        out = block(x, *args, **kwargs)
    if not seen:
        name = type(getattr(block, "func", block)).__name__  # of a block that is called by way of a partial
        raise RuntimeError(
            f"{name} did not call torch.nn.functional.scaled_dot_product_attention: for timm models "
            "keep fused attention on (TIMM_FUSED_ATTN must not be 0)"
        )
    return out
