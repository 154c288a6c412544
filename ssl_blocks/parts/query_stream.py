"""Query stream: a decoder that attends to the encoder's content stream and to nothing else."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_blocks.bounds import Depth, Heads, MlpRatio, NotNegative, Width
from ssl_blocks.doors import checked
from ssl_blocks.grid import Grid
from ssl_blocks.parts.attention import additive, run_block, split_empty_rows
from ssl_blocks.parts.decode import Asked, Memories, Places, Positions, position_module
from ssl_blocks.parts.layers import check_sizes, init_linear
from ssl_blocks.parts.query_block import QueryBlock
from ssl_blocks.values import AttentionMasks


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


@checked
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
        act_layer: builds the MLP's activation in blocks of its own.
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
        dim: Width,
        depth: Depth,
        norm: nn.Module,
        num_heads: Heads | None = None,
        mlp_ratio: MlpRatio = 4.0,
        eps: NotNegative = 1e-6,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        positions: Positions = "sincos",
        blocks: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if (num_heads is None) == (blocks is None):
            raise ValueError(f"num_heads={num_heads}: give it for blocks of the decoder's own, or give blocks instead")
        check_sizes(dim, num_heads or 1)
        if blocks is not None and len(blocks) != depth:
            raise ValueError(f"depth={depth} must be the number of blocks, {len(blocks)}")
        self.grid, self.dim, self.depth, self.memory_dim = grid, dim, depth, dim
        self.positions = position_module(positions, grid, dim)
        self._norm = (norm,)  # in a tuple nn.Module does not register it: it is the encoder's
        self._shared = None if blocks is None else tuple(blocks)
        if num_heads is not None:
            layers: Any = {"norm_layer": partial(nn.LayerNorm, eps=eps), "act_layer": act_layer}
            self.layers = nn.ModuleList(
                QueryBlock(Block(dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, **layers)) for _ in range(depth)
            )
            self.layers.apply(init_linear)

    @classmethod
    def sharing(cls, encoder: object, *, depth: Depth, positions: Positions = "sincos") -> "QueryStreamDecoder":
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
        self, memories: Memories, masks: AttentionMasks, *, query_index: Asked, memory_index: Places
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
        mask = additive(mask, x)
        for layer, memory in zip(self.layers if self._shared is None else self._shared, memories, strict=True):
            x = run_block(layer, x, memory, mask, empty)
        out: Tensor = self._norm[0](x)
        return out
