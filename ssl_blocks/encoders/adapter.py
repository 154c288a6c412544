"""What all adapters of vision transformers share: each adds only where its model keeps things."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_blocks.encoders.blocks import run_blocks
from ssl_blocks.values import Encoded, Grid


class TokenAdapter(nn.Module, ABC):
    """Shows a vision transformer as a ``TokenEncoder``; the base of the adapters, none of which changes its model.

    Args:
        module: the model, already found fit.
        grid: tokens of an image.
        dim: width of a token, ``D``.
        depth: number of blocks.
        num_prefix: class and register tokens in front of the sequence, ``P``.
    """

    def __init__(self, module: nn.Module, *, grid: Grid, dim: int, depth: int, num_prefix: int) -> None:
        super().__init__()
        self._modules["module"] = module
        self.grid, self.dim, self.depth, self.num_prefix = grid, dim, depth, num_prefix
        self.patch, self.channels = _two(self._stem().kernel_size), self._stem().in_channels
        self._recomputes = False

    @property
    def module(self) -> nn.Module:
        """The user's own model, unpatched."""
        # a property: from Python 3.12 on, isinstance of a protocol passes over what nn.Module keeps elsewhere
        module = self._modules["module"]
        assert module is not None
        return module

    @property
    @abstractmethod
    def norm(self) -> nn.Module:
        """The model's final norm."""

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
        images = x.ndim == 4
        size = (self.grid.height * self.patch[0], self.grid.width * self.patch[1])
        want = (self.channels, *(size if images else self.patch))
        if x.ndim not in (4, 5) or tuple(x.shape[-3:]) != want:
            raise ValueError(
                f"{'images' if images else 'patches'} of shape {tuple(x.shape)} do not fit the encoder: "
                f"expected [B, {'' if images else 'n, '}{', '.join(map(str, want))}]"
            )
        stem = self._stem()
        if images:
            return self._embedded(stem(x).flatten(2).transpose(1, 2))
        # a convolution whose kernel is its stride is one product per patch
        return self._embedded(F.linear(x.flatten(2), stem.weight.flatten(1), stem.bias))

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        index: Int[Tensor, "b n"] | None,
        mask: Bool[Tensor, "_ 1 s s"] | None = None,
    ) -> Encoded:
        """Place the tokens, put the prefix in front and run the blocks.

        Args:
            tokens: ``[B, n, D]`` out of ``embed``.
            index: raster position of every token, ``[B, n]``; ``None`` means no positions at all.
            mask: ``[1|B, 1, P+n, P+n]``, ``True`` = may attend; ``None`` lets all see all.

        Returns:
            Hidden states ``[B, P+n, D]`` after every block, and the last of them normalised.
        """
        x = self._entered(self._place(tokens, index))
        hidden = run_blocks(self._blocks(index), x, mask, checkpointing=self.grad_checkpointing)
        return Encoded(hidden=hidden, final=self.norm(hidden[-1]))

    def features(self, images: Float[Tensor, "..."]) -> Float[Tensor, "b d"]:
        """Mean over the patch tokens of the normalised output, ``[B, D]`` (RandSAC, Sec. 5.1).

        Args:
            images: ``[B, C, H, W]``, or all their patches ``[B, N, C, p, q]`` in raster order.
        """
        index = torch.arange(self.grid.num_tokens, device=images.device).expand(images.shape[0], -1)
        return self.encode(self.embed(images), index).final[:, self.num_prefix :].mean(1)

    @abstractmethod
    def native(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s d"]:
        """The model's own normalised output, prefix first: what ``encode`` must reproduce."""

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare: positions and prefix tokens."""
        return {f"module.{name}" for name in self._spared()}

    @abstractmethod
    def _stem(self) -> nn.Conv2d:
        """The convolution that embeds patches."""

    def _embedded(self, tokens: Tensor) -> Tensor:
        """What follows the convolution."""
        return tokens

    @abstractmethod
    def _prefix(self) -> Sequence[Tensor]:
        """Class, distillation and register tokens, each ``[1, k, D]``."""

    @abstractmethod
    def _positions(self) -> tuple[Tensor | None, int]:
        """The table added in front of the blocks, ``[1, rows + N, D]``, and its rows for prefix tokens."""

    def _entered(self, x: Tensor) -> Tensor:
        """What lies between placing and the first block: dropout, a norm."""
        return x

    @abstractmethod
    def _blocks(self, index: Tensor | None) -> Iterable[Callable[..., Tensor]]:
        """The blocks, called as ``block(x, attn_mask=mask)``; rotary ones know ``index``."""

    @abstractmethod
    def _spared(self) -> set[str]:
        """Names inside the model that weight decay must spare."""

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


def number_layers(
    module: nn.Module, blocks: Iterable[nn.Module], *, first: Iterable[nn.Parameter | None]
) -> dict[str, int]:
    """Layer of every parameter of a model: 0 for the embedding, i for block i from 1, then all that follows.

    Args:
        module: the model.
        blocks: its blocks in order.
        first: parameters of the embedding: patches, positions, prefix tokens.
    """
    layers, count = {id(parameter): 0 for parameter in first if parameter is not None}, 0
    for block in blocks:
        count += 1
        layers |= {id(parameter): count for parameter in block.parameters()}
    return {name: layers.get(id(parameter), count + 1) for name, parameter in module.named_parameters()}


def require_plain_stem(owner: str, stem: nn.Module) -> None:
    """Refuse a stem that mixes pixels of neighbouring patches.

    Raises:
        TypeError: if it is anything but one convolution whose kernel is its stride, without padding.
    """
    plain = isinstance(stem, nn.Conv2d) and (
        stem.kernel_size == stem.stride
        and set(stem.dilation) == {1}
        and stem.groups == 1
        and (stem.padding == "valid" or set(stem.padding) == {0})
    )
    if not plain:
        refuse_stem(owner, stem)


def _two(sizes: tuple[int, ...]) -> tuple[int, int]:
    height, width = sizes
    return height, width


def refuse_stem(owner: str, stem: object) -> None:
    """Say why a stem does not fit."""
    kind = str(stem) if isinstance(stem, nn.Conv2d) else type(stem).__name__
    raise TypeError(
        f"{owner} has a {kind} stem, which mixes pixels of neighbouring patches: hidden patches would leak into "
        "visible ones. Use a model with a plain patch embedding"
    )


def has_relative_positions(module: nn.Module) -> bool:
    """Whether attention carries biases for pairs of places in a full raster grid (BEiT, Swin)."""
    names = [*dict(module.named_modules()), *dict(module.named_parameters())]
    return any("rel_pos" in name or "relative_position" in name for name in names)


def refuse_relative_positions(module: nn.Module) -> None:
    """Refuse a model whose position biases hold for a full raster grid alone.

    Raises:
        TypeError: if it has any.
    """
    if has_relative_positions(module):
        raise TypeError(
            f"{type(module).__name__} adds relative position biases for a full raster grid; segments in another order "
            "would get wrong ones. Use a model with absolute or rotary positions, such as vit_base_patch16_224"
        )
