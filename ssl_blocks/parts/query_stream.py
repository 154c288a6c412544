"""Query stream: a decoder that attends to the encoder's content stream and to nothing else."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from ssl_blocks.parts.attention import run_block, split_empty_rows
from ssl_blocks.parts.decode import Memories, check_sizes, init_linear, position_module
from ssl_blocks.values import AttentionMasks, Grid


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
        mask: Bool[Tensor, "_ 1 t s"],
        empty: Bool[Tensor, "_ 1 t 1"],
    ) -> Float[Tensor, "b t d"]:
        """Move the queries on by one block.

        Args:
            x: the query stream, ``[B, t, D]``.
            memory: the content stream, not normalised, ``[B, s, D]``.
            mask: ``[1|B, 1, t, s]``, ``True`` = may attend; no row is all ``False``.
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


@runtime_checkable
class QuerySharing(Protocol):
    """An encoder whose blocks can run on queries as well."""

    grid: Grid
    dim: int

    @property
    def norm(self) -> nn.Module:
        """The model's final norm."""
        ...

    def query_blocks(self, depth: int) -> tuple[nn.Module, ...]:
        """The first ``depth`` blocks, called as ``block(x, memory, mask, empty)``."""
        ...


class QueryStreamDecoder(nn.Module):
    """Predict from positions that ask the content stream, layer by layer, and never see each other.

    Qi et al., "Exploring Stochastic Autoregressive Image Modeling for Visual Representation" (SAIM), query stream. A
    query starts as its position alone. Layer j attends to the encoder's states after the content block that it belongs
    to (`MatchedRouter`). The final norm is the encoder's own, on the queries alone.

    ``norm`` and ``blocks`` stay the caller's: they are used here but not registered, so they are trained, moved and
    saved with the encoder, once.

    Args:
        grid: tokens of an image.
        dim: width, ``D``: the encoder's, for the final norm is.
        depth: number of query blocks, one memory for each.
        norm: the encoder's final norm, ``encoder.norm``.
        num_heads: attention heads of blocks of its own; to be left out where ``blocks`` are given.
        mlp_ratio: hidden width of the MLP in units of ``dim``, in blocks of its own.
        eps: added to the variance in layer norms of blocks of its own.
        positions: ``"sincos"``, ``"learned"``, or a module from indices ``[B, t]`` to ``[B, t, D]``.
        blocks: ``depth`` blocks shared with the encoder, see `sharing`; ``None`` makes own ones.

    Raises:
        ValueError: if ``num_heads`` does not divide ``dim``, the depth is smaller than 1 or not the number of blocks,
            or not exactly one of ``num_heads`` and ``blocks`` is given.

    Examples:
        >>> decoder = QueryStreamDecoder(grid=Grid(8, 8), dim=64, depth=2, num_heads=4, norm=nn.LayerNorm(64))
        >>> [name for name in decoder.state_dict() if name.startswith("norm")]
        []
    """

    def __init__(
        self,
        *,
        grid: Grid,
        dim: int,
        depth: int,
        norm: nn.Module,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        positions: Literal["sincos", "learned"] | nn.Module = "sincos",
        blocks: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if (num_heads is None) == (blocks is None):
            raise ValueError(f"num_heads={num_heads}: give it for blocks of the decoder's own, or give blocks instead")
        check_sizes(dim, 1 if num_heads is None else num_heads, depth)
        if blocks is not None and len(blocks) != depth:
            raise ValueError(f"depth={depth} must be the number of blocks, {len(blocks)}")
        self.grid, self.dim, self.depth = grid, dim, depth
        self.positions = position_module(positions, grid, dim)
        self._norm = (norm,)  # in a tuple nn.Module does not register it: it is the encoder's
        self._shared = None if blocks is None else tuple(blocks)
        if num_heads is not None:
            layer_norm = cast("type[nn.Module]", partial(nn.LayerNorm, eps=eps))
            self.layers = nn.ModuleList(
                QueryBlock(Block(dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=layer_norm))
                for _ in range(depth)
            )
            self.layers.apply(init_linear)

    @classmethod
    def sharing(
        cls, encoder: object, *, depth: int, positions: Literal["sincos", "learned"] | nn.Module = "sincos"
    ) -> "QueryStreamDecoder":
        """Use the encoder's own blocks for the queries: step j runs its block j, whatever content block came before.

        Args:
            encoder: an adapter with ``query_blocks``, such as `TimmViT`.
            depth: number of query steps.
            positions: as above.

        Raises:
            TypeError: if the encoder's blocks cannot run on queries.
            ValueError: if the encoder has fewer blocks.
        """
        if not isinstance(encoder, QuerySharing):
            raise TypeError(
                f"{type(encoder).__name__} has no query_blocks(depth), so its weights cannot be shared with the query "
                "stream: build a decoder with blocks of its own (num_heads=...)"
            )
        return cls(
            grid=encoder.grid,
            dim=encoder.dim,
            depth=depth,
            norm=encoder.norm,
            positions=positions,
            blocks=encoder.query_blocks(depth),
        )

    def forward(
        self,
        memories: Memories,
        masks: AttentionMasks,
        *,
        query_index: Int[Tensor, "b t"],
        memory_index: Int[Tensor, "b e"],
    ) -> Float[Tensor, "b t d"]:
        """Predict one normalised vector ``[B, t, D]`` per query.

        Raises:
            ValueError: if the number of memories is not ``depth``, or their width is not ``dim``.
        """
        if len(memories) != self.depth:
            raise ValueError(f"depth={self.depth} needs one memory per layer, got {len(memories)}")
        if memories[0].shape[-1] != self.dim:
            raise ValueError(f"dim={self.dim} must be the width of the memories, {memories[0].shape[-1]}")
        mask, empty = split_empty_rows(masks.memory)
        x = self.positions(query_index)
        for layer, memory in zip(self.layers if self._shared is None else self._shared, memories, strict=True):
            x = run_block(layer, x, memory, mask, empty)
        out: Tensor = self._norm[0](x)
        return out
