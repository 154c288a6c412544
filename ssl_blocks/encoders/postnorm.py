"""The patch puzzle's own transformer: raw patches are its tokens, and nothing tells it where they lie."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.bounds import Channels, Depth, Dropped, Heads
from ssl_blocks.doors import check_weights, checked
from ssl_blocks.encoders.adapter import DescribedAdapter, Description, Size, grid_for
from ssl_blocks.encoders.tokens import TokenAdapter, are_images
from ssl_blocks.grid import Grid
from ssl_blocks.parts.tokenize import cut_cells, pair


@checked
class PostNormTransformer(DescribedAdapter["PostNormTransformer"], TokenAdapter["PostNormTransformer"]):
    """A transformer over raw patches without positions, normalised after each step (APL).

    A token is the patch itself, flattened as (c, y, x), so its width is ``C * p * q``. Queries, keys and values have no
    bias, and all three are divided by the fourth root of the whole width. Every block adds, normalises and drops out,
    after attention and again after its MLP with ReLU. The last block ends in a norm, so there is no other one.

    Calling it, like calling an exported timm model, gives the same as ``features``.

    Args:
        grid: tokens of an image in height and width; one number means a square.
        patch: height and width of a patch in pixels; one number means a square.
        channels: colour channels of the images.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP in units of the width.
        dropout: share of the values that is dropped after each norm while training.

    Raises:
        ValueError: if the heads do not divide the width, the depth is smaller than 1, or the dropout not in [0, 1).

    Examples:
        >>> import torch
        >>> encoder = PostNormTransformer(grid=7, patch=12)
        >>> encoder.dim, encoder.features(torch.zeros(1, 49, 3, 12, 12)).shape
        (432, torch.Size([1, 432]))
    """

    architecture = "PostNormTransformer"
    norm_at = "_no_norm"  # the last block ends in one

    def __init__(
        self,
        *,
        grid: Size,
        patch: Size,
        channels: Channels = 3,
        depth: Depth = 4,
        num_heads: Heads = 16,
        mlp_ratio: int = 3,
        dropout: Dropped = 0.0,
    ) -> None:
        patch = pair(patch)
        dim = channels * patch[0] * patch[1]
        super().__init__(
            None, grid=Grid(*pair(grid)), dim=dim, depth=depth, num_prefix=0, patch=patch, channels=channels
        )
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"num_heads={num_heads} must divide the width {dim}, which is the values of a patch: "
                f"{channels} channels of {patch[0]}x{patch[1]} pixels"
            )
        self.model_args: dict[str, Any] = {
            "grid": (self.grid.height, self.grid.width),
            "patch": patch,
            "channels": channels,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "dropout": dropout,
        }
        self.blocks = nn.ModuleList(_PostNormBlock(dim, num_heads, mlp_ratio, dropout) for _ in range(depth))
        self._no_norm = nn.Identity()

    @property
    def module(self) -> "PostNormTransformer":
        """The model itself: it needs no adapter."""
        return self

    def embed(self, x: Float[Tensor, "..."]) -> Float[Tensor, "b n d"]:
        """Flatten images ``[B, C, H, W]`` or patches ``[B, n, C, p, q]`` into tokens ``[B, n, D]``.

        Raises:
            ValueError: if the pixels are not the encoder's: image size, patch size or channels.
        """
        check_weights("images", x, self.blocks[0].proj.weight)  # type: ignore[union-attr, arg-type]
        is_whole = are_images(x, self.grid, self.patch, self.channels)
        return (cut_cells(x, self.patch) if is_whole else x).flatten(2)

    def native(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """What the blocks make of the tokens, one after the other."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return x

    def _stem(self) -> nn.Module:
        return nn.Identity()  # raw patches are the tokens

    @classmethod
    def of(cls, module: nn.Module) -> "PostNormTransformer | None":
        """The model itself."""
        return module if isinstance(module, cls) else None

    @classmethod
    def rebuild(cls, model_args: Mapping[str, Any]) -> "PostNormTransformer":
        """The same model, with weights to be filled in."""
        return cls(**model_args)

    @classmethod
    def resized(cls, stored: Description, image_size: Size) -> Description:
        """For another input size: without positions, nothing but the grid knows it."""
        grid = grid_for(image_size, tuple(stored.model_args["patch"]))
        return Description({**stored.model_args, "grid": (grid.height, grid.width)}, stored.state)


class _PostNormBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.ReLU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        b, n, d = x.shape
        # queries and keys together make the usual scale, of the width and not of a head; values are divided, too
        scaled = self.qkv(x) * d**-0.25
        query, key, value = scaled.reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=1.0)
        x = self.dropout(self.norm1(self.proj(seen.transpose(1, 2).flatten(2)) + x))
        out: Tensor = self.dropout(self.norm2(self.mlp(x) + x))
        return out
