"""What all adapters of vision transformers share: each adds only where its model keeps things."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_blocks.bounds import Channels, Depth, Pixels, Whole, Width
from ssl_blocks.doors import check_weights, checked
from ssl_blocks.encoders.adapter import Adapter, M
from ssl_blocks.grid import Grid
from ssl_blocks.parts.attention import additive, run_block
from ssl_blocks.parts.query_block import QueryBlock
from ssl_blocks.values import Encoded


@checked
class TokenAdapter(Adapter[M]):
    """Shows a vision transformer as a ``TokenEncoder``; the base of the adapters, none of which changes its model.

    The module is already found fit; grid, width, depth and prefix are those of the role, and patch and channels are
    read off the stem where they are not given.
    """

    norm_at, blocks_at = "norm", "blocks"  # where the model keeps its final norm, and its blocks

    def __init__(
        self,
        module: M | None,
        *,
        grid: Grid,
        dim: Width,
        depth: Depth,
        num_prefix: Whole,
        patch: tuple[Pixels, ...] | None = None,
        channels: Channels | None = None,
    ) -> None:
        super().__init__(module)
        self.grid, self.dim, self.depth, self.num_prefix = grid, dim, depth, num_prefix
        self.patch: tuple[int, ...] = patch or tuple(self._stem().kernel_size)
        self.channels: int = channels or self._stem().in_channels
        self._recomputes = False

    @property
    def norm(self) -> nn.Module:
        """The model's final norm."""
        return self.module.get_submodule(self.norm_at)

    @property
    def grad_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass instead of keeping their activations."""
        return self._recomputes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks are recomputed in the backward pass."""
        self._recomputes = enable

    def embed(self, x: Float[Tensor, "..."]) -> Float[Tensor, "b n d"]:
        """Turn images ``[B, C, H, W]`` or patches ``[B, n, C, p, q]`` into tokens ``[B, n, D]``.

        Raises:
            ValueError: if the pixels are not the encoder's: image size, patch size or channels.
        """
        stem = self._stem()
        check_weights("images", x, stem.weight)
        if are_images(x, self.grid, self.patch, self.channels):
            return self._embedded(stem(x).flatten(2).transpose(1, 2))
        # a convolution whose kernel is its stride is one product per patch
        return self._embedded(F.linear(x.flatten(2), stem.weight.flatten(1), stem.bias))

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        index: Int[Tensor, "b n"] | None,
        mask: Bool[Tensor, "_ 1 s s"] | None = None,
    ) -> Encoded:
        """Place the tokens, put the prefix in front and run the blocks: see `TokenEncoder.encode`.

        Returns:
            What enters the first block, hidden states after every block, and the last of them normalised, each
            ``[B, P+n, D]``.
        """
        x = self._entered(self._place(tokens, index))
        hidden = run_blocks(self._blocks(index), x, mask, checkpointing=self.grad_checkpointing)
        return Encoded(input=x, hidden=hidden, final=self.norm(hidden[-1]))

    def features(
        self, images: Float[Tensor, "..."], mask: Bool[Tensor, "_ 1 s s"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Mean over the patch tokens of the normalised output, ``[B, D]`` (RandSAC, Sec. 5.1)."""
        index = torch.arange(self.grid.num_tokens, device=images.device).expand(images.shape[0], -1)
        return self.encode(self.embed(images), index, mask).final[:, self.num_prefix :].mean(1)

    @abstractmethod
    def native(self, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b s d"]:
        """The model's own normalised output, prefix first: what ``encode`` must reproduce."""

    @abstractmethod
    def _stem(self) -> Any:
        """The convolution that embeds patches, or what has its ``kernel_size``, ``in_channels`` and weights."""

    def _embedded(self, tokens: Tensor) -> Tensor:
        """What follows the convolution."""
        return tokens

    def _prefix(self) -> Sequence[Tensor]:
        """Class, distillation and register tokens, each ``[1, k, D]``."""
        return ()

    def _positions(self) -> tuple[Tensor | None, int]:
        """The table added in front of the blocks, ``[1, rows + N, D]``, and its rows for prefix tokens."""
        return None, 0

    def _entered(self, x: Tensor) -> Tensor:
        """What lies between placing and the first block: dropout, a norm."""
        return x

    def _layers(self) -> Any:
        """The model's own blocks."""
        return self.module.get_submodule(self.blocks_at)

    def _blocks(self, index: Tensor | None) -> Iterable[Callable[..., Tensor]]:
        """The blocks, called as ``block(x, attn_mask=mask)``; rotary ones know ``index``."""
        blocks: Iterable[Callable[..., Tensor]] = self._layers()
        return blocks

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter of ``module``, for layer-wise decay: see `Adapter.layer_ids`."""
        named = dict(self.module.named_parameters())
        embedding = [*self._stem().parameters(), *(named[name] for name in self._spared() if name in named)]
        layers = {id(parameter): 0 for parameter in embedding}
        for number, block in enumerate(self._layers(), 1):
            layers |= {id(parameter): number for parameter in block.parameters()}
        return {name: layers.get(id(parameter), self.depth + 1) for name, parameter in named.items()}

    def _place(self, tokens: Tensor, index: Tensor | None) -> Tensor:
        """Add looked-up positions and put the prefix in front."""
        prefix, (table, rows) = self._prefix(), self._positions()
        front = torch.cat(list(prefix), dim=1) if prefix else None
        if table is not None:
            if index is not None:
                tokens = tokens + table[0, rows:][index]
            if front is not None and rows:  # there may be rows for the class token alone
                front = torch.cat([front[:, :rows] + table[:, :rows], front[:, rows:]], dim=1)
        if front is None:
            return tokens
        return torch.cat([front.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)


@checked
class PlainBlocks(TokenAdapter[M]):
    """A model of timm's plain blocks, which run on queries, too."""

    def query_blocks(self, depth: Depth) -> tuple[QueryBlock, ...]:
        """The first ``depth`` blocks, run on queries with the same weights (SAIM with shared weights).

        Not for parameters dealt out over processes (FSDP): a block's weights are gathered only when it runs on content.

        Raises:
            ValueError: if there are fewer blocks.
            TypeError: if they are not timm's plain ``Block``.
        """
        if not 1 <= depth <= self.depth:
            raise ValueError(f"depth={depth} must be at least 1 and at most the encoder's {self.depth} blocks")
        return tuple(QueryBlock(block) for block in self._layers()[:depth])


def run_blocks(
    blocks: Iterable[Callable[..., Tensor]],
    x: Float[Tensor, "b s d"],
    mask: Bool[Tensor, "_ 1 s s"] | None,
    *,
    checkpointing: bool = False,
) -> tuple[Float[Tensor, "b s d"], ...]:
    """Run blocks that take ``attn_mask`` and keep the residual stream after each."""
    recompute = checkpointing and torch.is_grad_enabled()
    bias = None if mask is None else additive(mask, x)
    hidden = []
    for block in blocks:
        if recompute:
            # Dynamo can enter no function mode inside a checkpoint, so there attention stays with torch
            run = block if torch.compiler.is_compiling() else partial(run_block, block)
            x = checkpoint(run, x, attn_mask=bias, use_reentrant=False)
        else:
            x = run_block(block, x, attn_mask=bias)
        hidden.append(x)
    return tuple(hidden)


def are_images(x: Tensor, grid: Grid, patch: tuple[int, ...], channels: int) -> bool:
    """Tell images ``[B, C, *sizes]`` from patches ``[B, n, C, *patch]``."""
    if not x.is_floating_point():
        raise TypeError(f"images of {x.dtype} must be normalised floating-point numbers, such as torch.float32")
    images = x.ndim == 2 + grid.ndim
    want = (channels, *(n * p if images else p for n, p in zip(grid.sizes, patch, strict=True)))
    if tuple(x.shape[1 if images else 2 :]) != want:
        raise ValueError(
            f"{'images' if images else 'patches'} of shape {tuple(x.shape)} do not fit the encoder: "
            f"expected [B, {'' if images else 'n, '}{', '.join(map(str, want))}]"
        )
    return images


def require_plain_stem(owner: str, stem: nn.Module) -> None:
    """Refuse a stem that mixes pixels of neighbouring patches."""
    plain = isinstance(stem, nn.Conv2d) and (
        stem.kernel_size == stem.stride
        and set(stem.dilation) == {1}
        and stem.groups == 1
        and (stem.padding == "valid" or set(stem.padding) == {0})
    )
    if not plain:
        refuse_stem(owner, stem)


def refuse_stem(owner: str, stem: object) -> None:
    """Say why a stem does not fit."""
    kind = str(stem) if isinstance(stem, nn.Conv2d) else type(stem).__name__
    raise TypeError(
        f"{owner} has a {kind} stem, which mixes pixels of neighbouring patches: hidden patches would leak into "
        "visible ones. Use a model with a plain patch embedding"
    )


def refuse_relative_positions(module: nn.Module) -> None:
    """Refuse a model whose position biases hold for a full raster grid alone (BEiT, Swin)."""
    names = [*dict(module.named_modules()), *dict(module.named_parameters())]
    if any("rel_pos" in name or "relative_position" in name for name in names):
        raise TypeError(
            f"{type(module).__name__} adds relative position biases for a full raster grid; segments in another order "
            "would get wrong ones. Use a model with absolute or rotary positions, such as vit_base_patch16_224"
        )


def self_attention(
    attention: nn.MultiheadAttention, x: Float[Tensor, "b s d"], mask: Shaped[Tensor, "_ 1 s s"] | None
) -> Float[Tensor, "b s d"]:
    """Attend as ``attention(x, x, x)`` would, but with one mask per image: of bools, or added to the scores.

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
    """Refuse attention that more goes into than queries, keys and values of the sequence itself."""
    if type(attention) is not nn.MultiheadAttention:
        raise TypeError(f"{owner} attends by {type(attention).__name__}, expected nn.MultiheadAttention")
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        raise ValueError(
            f"{owner} attends to more than the sequence itself (kdim, vdim, add_bias_kv or add_zero_attn), of "
            "which a mask says nothing"
        )
