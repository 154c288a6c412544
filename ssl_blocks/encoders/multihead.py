"""Self-attention with the weights of an ``nn.MultiheadAttention``, by way of the one function that masks pass."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


def self_attention(
    attention: nn.MultiheadAttention, x: Float[Tensor, "b s d"], mask: Bool[Tensor, "_ 1 s s"] | None
) -> Float[Tensor, "b s d"]:
    """Attend as ``attention(x, x, x)`` would, but with one mask per image, ``True`` = may attend.

    The module's own call inverts masks, wants one per head, and is answered as a whole wherever attention is
    replaced by another kernel.
    """
    batch, length, dim = x.shape
    packed = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = packed.reshape(batch, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    dropout = attention.dropout if attention.training else 0.0
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    attended: Tensor = attention.out_proj(out.transpose(1, 2).reshape(batch, length, dim))
    return attended


def require_plain_attention(owner: str, attention: nn.Module) -> None:
    """Refuse attention that more goes into than queries, keys and values of the sequence itself.

    Raises:
        TypeError: if it is no ``nn.MultiheadAttention``.
        ValueError: if keys and values have sizes or biases of their own, or a zero is added to them.
    """
    if type(attention) is not nn.MultiheadAttention:
        raise TypeError(f"{owner} attends by {type(attention).__name__}, expected nn.MultiheadAttention")
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        raise ValueError(
            f"{owner} attends to more than the sequence itself (kdim, vdim, add_bias_kv or add_zero_attn), of "
            "which a mask says nothing"
        )
