"""A block whose queries come from one stream, and keys and values from another."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from ssl_blocks.doors import checked


@checked
class QueryBlock(nn.Module):
    """Run a block of timm as a query block: queries come from one stream, keys and values from another.

    SAIM's step of the query stream, ``g + attention(norm1(g), norm1(h))`` and then ``g + mlp(norm2(g))``, with the
    block's own weights: both streams pass through its first norm, and its query, key and value rows are applied to one
    of them each. Norms of queries and keys, layer scale, dropout and stochastic depth are the block's.

    Args:
        block: timm's pre-norm ``Block`` with its plain ``Attention``.

    Raises:
        TypeError: if it is another kind of block.

    Examples:
        >>> import torch
        >>> block = QueryBlock(Block(16, num_heads=2))
        >>> mask = torch.tensor([[[[True, False, False], [True, True, False]]]])
        >>> block(torch.rand(1, 2, 16), torch.rand(1, 3, 16), mask, ~mask.any(-1, keepdim=True)).shape
        torch.Size([1, 2, 16])
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        if type(block) is not Block or not isinstance(block.attn, Attention):
            names = type(block).__name__, type(getattr(block, "attn", None)).__name__
            raise TypeError(
                f"block must be timm's Block with its Attention to run on queries, got {' with '.join(names)}"
            )
        self.block = block

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"],
        mask: Shaped[Tensor, "_ 1 t s"],
        empty: Bool[Tensor, "_ 1 t 1"],
    ) -> Float[Tensor, "b t d"]:
        """Move the queries on by one block.

        Args:
            x: the query stream, ``[B, t, D]``.
            memory: the content stream, not normalised, ``[B, s, D]``.
            mask: ``[1|B, 1, t, s]``, ``True`` = may attend, or what is added to the scores; every row may attend.
            empty: ``[1|B, 1, t, 1]``, ``True`` where the attention of a query yields 0.
        """
        block = self.block
        attended = self._attend(block.norm1(x), block.norm1(memory), mask, empty)
        x = x + block.drop_path1(block.ls1(attended))
        out: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        return out

    def _attend(self, x: Tensor, memory: Tensor, mask: Tensor, empty: Tensor) -> Tensor:
        attn: Any = self.block.attn
        weight, bias = attn.qkv.weight, attn.qkv.bias
        width = weight.shape[0] // 3  # rows of queries, then keys, then values
        query = F.linear(x, weight[:width], None if bias is None else bias[:width])
        key, value = F.linear(memory, weight[width:], None if bias is None else bias[width:]).chunk(2, -1)
        query, key, value = (
            part.reshape(*part.shape[:2], attn.num_heads, -1).transpose(1, 2) for part in (query, key, value)
        )
        dropout = attn.attn_drop.p if attn.training else 0.0
        out = F.scaled_dot_product_attention(
            attn.q_norm(query), attn.k_norm(key), value, attn_mask=mask, dropout_p=dropout
        )
        out = attn.norm(out.masked_fill(empty, 0.0).transpose(1, 2).flatten(2))
        if getattr(attn, "gate", None) is not None:
            out = out * attn.gate(x).sigmoid()
        projected: Tensor = attn.proj_drop(attn.proj(out))
        return projected
