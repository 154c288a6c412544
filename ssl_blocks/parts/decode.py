"""Decoders turn memories into one vector per predicted token."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from ssl_blocks.bounds import Depth, Heads, MlpRatio, NotNegative, Width
from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid
from ssl_blocks.parts.attention import additive, can_be_looked_at, run_block, split_empty_rows
from ssl_blocks.parts.layers import check_sizes, init_linear
from ssl_blocks.parts.position import PositionTable
from ssl_blocks.values import AttentionMasks

Memories = tuple[Float[Tensor, "b s m"], ...]
Places = Int[Tensor, "b e"]  # raster positions of what is encoded
Asked = Int[Tensor, "b t"]  # and of what is predicted
Positions = Literal["sincos", "learned"] | nn.Module


@runtime_checkable
class Decoder(Protocol):
    """Predicts at asked-for positions from one memory per layer."""

    dim: int

    def __call__(
        self, memories: Memories, masks: AttentionMasks, *, query_index: Asked, memory_index: Places
    ) -> Float[Tensor, "b t d"]:
        """Return ``[B, t, D]``.

        Args:
            memories: one ``[B, P+e, memory_dim]`` per layer.
            masks: who may attend to whom.
            query_index: raster positions to predict, ``[B, t]``.
            memory_index: raster positions of the encoded tokens, ``[B, e]``, without the prefix.
        """
        ...


def position_module(positions: Positions, grid: Grid, dim: int) -> nn.Module:
    """Build the position table that a decoder asks for, or pass on the caller's."""
    if isinstance(positions, nn.Module):
        return positions
    return PositionTable.sincos(grid, dim) if positions == "sincos" else PositionTable.learned(grid, dim)


class _CrossAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.memory, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, empty: Tensor) -> Tensor:
        query = self._heads(self.query(x), 1)[0]
        key, value = self._heads(self.memory(memory), 2)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).masked_fill(empty, 0.0)
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        b, n, _ = x.shape  # reshape: Dynamo 2.11 cannot trace unflatten under a function mode
        return x.reshape(b, n, parts, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


class _SegmentLayer(nn.Module):
    """Self-attention, where there is one, cross-attention and MLP, each behind its own norm."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        eps: float,
        self_attention: bool,
        act_layer: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps) if self_attention else None
        self.norm2, self.norm3 = (nn.LayerNorm(dim, eps=eps) for _ in range(2))
        self.self_attn = Attention(dim, num_heads=num_heads, qkv_bias=True) if self_attention else None
        self.cross_attn = _CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), act_layer=cast("type[nn.Module]", act_layer))

    def forward(self, x: Tensor, memory: Tensor, target_mask: Tensor, memory_mask: Tensor, empty: Tensor) -> Tensor:
        if self.self_attn is not None and self.norm1 is not None:
            x = x + self.self_attn(self.norm1(x), attn_mask=target_mask)
        x = x + self.cross_attn(self.norm2(x), memory, memory_mask, empty)
        out: Tensor = x + self.mlp(self.norm3(x))
        return out


@checked
class SegmentDecoder(nn.Module):
    """Predict segments from positions alone: self-attention over queries, cross-attention to memories.

    RandSAC, Sec. 3.2: a query is the position of the token to predict; it carries no content, mask token or
    start token. Pre-norm layers, as the encoder's.

    Args:
        grid: tokens of an image.
        dim: width, ``D``.
        depth: number of layers, one memory for each.
        num_heads: attention heads.
        memory_dim: width of the memories; where it is not ``dim``, a Linear leads over. ``None`` means ``dim``.
        mlp_ratio: hidden width of the MLP in units of ``dim``.
        positions: ``"sincos"``, ``"learned"``, or a module from indices ``[B, t]`` to ``[B, t, D]``, such as a
            ``PositionTable`` over the encoder's own table.
        eps: added to the variance in layer norms.
        self_attention: whether queries attend to each other, as the mask has it; CrossMAE's do not.
        mask_token: whether a learned vector, the same for all queries, is added to their positions (CrossMAE).
        act_layer: builds the MLP's activation; ``nn.ReLU`` is that of RandSAC's pseudocode, whose encoder is then
            ``timm_vit(..., act_layer="relu")``.

    Raises:
        ValueError: if ``num_heads`` does not divide ``dim``, or the depth is smaller than 1.

    Examples:
        >>> SegmentDecoder(grid=Grid(8, 8), dim=64, depth=2, num_heads=4, memory_dim=96).dim
        64
    """

    def __init__(
        self,
        *,
        grid: Grid,
        dim: Width,
        depth: Depth,
        num_heads: Heads,
        memory_dim: Width | None = None,
        mlp_ratio: MlpRatio = 4.0,
        positions: Positions = "sincos",
        eps: NotNegative = 1e-6,
        self_attention: bool = True,
        mask_token: bool = False,
        act_layer: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        check_sizes(dim, num_heads)
        self.grid, self.dim, self.depth = grid, dim, depth
        self.memory_dim = dim if memory_dim is None else memory_dim
        self.positions = position_module(positions, grid, dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02) if mask_token else None
        self.memory_proj = nn.Identity() if self.memory_dim == dim else nn.Linear(self.memory_dim, dim)
        self.layers = nn.ModuleList(
            _SegmentLayer(dim, num_heads, mlp_ratio, eps, self_attention, act_layer) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        for own in (self.memory_proj, self.layers):  # not the positions: they may be the caller's
            own.apply(init_linear)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare."""
        return set() if self.mask_token is None else {"mask_token"}

    def forward(
        self, memories: Memories, masks: AttentionMasks, *, query_index: Asked, memory_index: Places
    ) -> Float[Tensor, "b t d"]:
        """Predict one normalised vector ``[B, t, D]`` per query.

        Raises:
            ValueError: if the number of memories is not ``depth``.
        """
        if len(memories) != self.depth:
            raise ValueError(f"depth={self.depth} needs one memory per layer, got {len(memories)}")
        # no kernel is asked about rows that may attend to nothing: some answer NaN
        memory_mask, empty = split_empty_rows(masks.memory)
        x = self.positions(query_index)
        if self.mask_token is not None:
            x = x + self.mask_token
        target_mask, memory_mask = additive(masks.target, x), additive(memory_mask, x)
        for layer, memory in zip(self.layers, memories, strict=True):
            x = run_block(layer, x, self.memory_proj(memory), target_mask, memory_mask, empty)
        out: Tensor = self.norm(x)
        return out


@checked
class MaskTokenDecoder(nn.Module):
    """Fill in mask tokens: self-attention over encoded and mask tokens together (MAE, Sec. 3).

    Encoded tokens are led to the decoder's width; every token gets its position, but prefix tokens, whose rows are
    zero in MAE. All tokens see each other, so the decoder fits objectives of two steps: what is given and what is not.

    Args:
        grid: tokens of an image.
        dim: width, ``D``.
        depth: number of blocks.
        num_heads: attention heads.
        memory_dim: width of what the encoder hands over; ``None`` means ``dim``.
        mlp_ratio: hidden width of the MLP in units of ``dim``.
        positions: as for `SegmentDecoder`.
        eps: added to the variance in layer norms.
        act_layer: builds the MLP's activation.

    Raises:
        ValueError: if ``num_heads`` does not divide ``dim``, or the depth is smaller than 1.

    Examples:
        >>> MaskTokenDecoder(grid=Grid(8, 8), dim=64, depth=2, num_heads=4, memory_dim=96).dim
        64
    """

    def __init__(
        self,
        *,
        grid: Grid,
        dim: Width = 512,
        depth: Depth = 8,
        num_heads: Heads = 16,
        memory_dim: Width | None = None,
        mlp_ratio: MlpRatio = 4.0,
        positions: Positions = "sincos",
        eps: NotNegative = 1e-6,
        act_layer: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        check_sizes(dim, num_heads)
        self.grid, self.dim, self.depth = grid, dim, depth
        self.memory_dim = dim if memory_dim is None else memory_dim
        self.positions = position_module(positions, grid, dim)
        self.memory_proj = nn.Linear(self.memory_dim, dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        norm = partial(nn.LayerNorm, eps=eps)
        layers: Any = {"norm_layer": norm, "act_layer": act_layer}
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, **layers) for _ in range(depth)
        )
        self.norm = norm(dim)
        for own in (self.memory_proj, self.blocks):
            own.apply(init_linear)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare."""
        return {"mask_token"}

    def forward(
        self, memories: Memories, masks: AttentionMasks, *, query_index: Asked, memory_index: Places
    ) -> Float[Tensor, "b t d"]:
        """Predict one normalised vector ``[B, t, D]`` per query, out of a single memory.

        Raises:
            ValueError: if there is more than one memory, or (looked at on CPU) a query must not see all of it.
        """
        if len(memories) != 1:
            raise ValueError(f"MaskTokenDecoder takes one memory, got {len(memories)}: use a router of decoder_depth=1")
        if can_be_looked_at(masks.memory) and not masks.memory.all():
            raise ValueError("MaskTokenDecoder lets all tokens see each other: it fits two steps, given and predicted")
        known = self.memory_proj(memories[0])
        prefix = known.shape[1] - memory_index.shape[1]
        placed = known[:, prefix:] + self.positions(memory_index)
        asked = self.mask_token + self.positions(query_index)
        x = torch.cat([known[:, :prefix], placed, asked.to(placed.dtype)], dim=1)
        for block in self.blocks:
            x = run_block(block, x)
        out: Tensor = self.norm(x[:, -query_index.shape[1] :])
        return out
