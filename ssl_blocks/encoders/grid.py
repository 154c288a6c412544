"""A vision transformer over a grid of any number of axes: signals, images, volumes, video, channels."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_blocks.bounds import Channels, Depth, Heads, MlpRatio, Pixels, Whole, Width
from ssl_blocks.doors import checked
from ssl_blocks.encoders.adapter import DescribedAdapter, Description, Size, grid_for, resampled
from ssl_blocks.encoders.tokens import PlainBlocks
from ssl_blocks.grid import Grid
from ssl_blocks.parts.layers import check_sizes, init_linear
from ssl_blocks.parts.position import sincos_table
from ssl_blocks.parts.tokenize import PatchTokenizer, cut_cells


class PatchStem(nn.Module):
    """What a convolution whose kernel is its stride computes, for any number of axes: one product per patch.

    Args:
        in_channels: channels of the images.
        dim: width of a token.
        kernel_size: the patch, a size for each axis.
    """

    def __init__(self, in_channels: int, dim: int, kernel_size: tuple[int, ...]) -> None:
        super().__init__()
        self.in_channels, self.kernel_size = in_channels, kernel_size
        self.weight = nn.Parameter(torch.empty(dim, in_channels, *kernel_size))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight as MAE does: Xavier's uniform distribution of the flattened product."""
        nn.init.xavier_uniform_(self.weight.data.view(len(self.weight), -1))
        nn.init.zeros_(self.bias)

    def forward(self, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b d n"]:
        """Tokens of images, in the layout of a convolution."""
        patches = cut_cells(images, self.kernel_size).flatten(2)
        return F.linear(patches, self.weight.flatten(1), self.bias).transpose(1, 2)

    def extra_repr(self) -> str:
        """As a convolution's."""
        return f"{self.in_channels}, {len(self.weight)}, kernel_size={self.kernel_size}"


@checked
class GridTransformer(nn.Module):
    """A vision transformer for signals, images, volumes, video, and for one token per channel and place.

    Timm's plain blocks stand behind a linear stem of as many axes as the images have. What `ChannelTokenizer` cuts is
    a volume of one channel: give the channels as first axis of ``image_size``, and ``channels=1``. Calling the model
    gives normalised tokens; `GridViT` shows it as an encoder.

    Args:
        image_size: pixels along each axis; one number means a square.
        patch_size: size of a patch along each axis; one number means equal sides.
        channels: channels of the images.
        dim: width of a token.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP in units of ``dim``.
        positions: ``"sincos"``: the fixed table of `sincos_table`; ``"learned"``: one row per token; ``"none"``.
        num_prefix: class or register tokens in front.

    Raises:
        ValueError: if sizes do not fit each other, see `PatchTokenizer` and `sincos_table`, or positions are unknown.

    Examples:
        >>> model = GridTransformer(image_size=(1000,), patch_size=20, channels=12, dim=48, depth=2, num_heads=2)
        >>> model(torch.zeros(3, 12, 1000)).shape
        torch.Size([3, 50, 48])
    """

    positions: Tensor | None

    def __init__(
        self,
        *,
        image_size: Pixels | tuple[Pixels, ...],
        patch_size: Pixels | tuple[Pixels, ...],
        channels: Channels = 3,
        dim: Width = 192,
        depth: Depth = 12,
        num_heads: Heads = 3,
        mlp_ratio: MlpRatio = 4.0,
        positions: Literal["sincos", "learned", "none"] = "sincos",
        num_prefix: Whole = 0,
    ) -> None:
        super().__init__()
        check_sizes(dim, num_heads)
        if positions not in ("sincos", "learned", "none"):
            raise ValueError(f"positions={positions!r} must be 'sincos', 'learned' or 'none'")
        tokenizer = PatchTokenizer(image_size=image_size, patch_size=patch_size, channels=channels)
        self.grid = tokenizer.grid
        self.model_args: dict[str, Any] = {
            "image_size": tokenizer.image_size,
            "patch_size": tokenizer.patch,
            "channels": channels,
            "dim": dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "positions": positions,
            "num_prefix": num_prefix,
        }
        self.stem = PatchStem(channels, dim, tokenizer.patch)
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.blocks.apply(init_linear)
        if positions == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(1, self.grid.num_tokens, dim))
        else:
            self.register_buffer("positions", sincos_table(self.grid, dim)[None] if positions == "sincos" else None)
        self.prefix = nn.Parameter(0.02 * torch.randn(1, num_prefix, dim)) if num_prefix else None

    def forward(self, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b t d"]:
        """Normalised tokens ``[B, P + N, D]``, prefix first."""
        x = self.stem(images).transpose(1, 2)
        x = x if self.positions is None else x + self.positions
        x = x if self.prefix is None else torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


@checked
class GridViT(DescribedAdapter[GridTransformer], PlainBlocks[GridTransformer]):
    """See a `GridTransformer` as a token encoder.

    Args:
        module: the model.

    Examples:
        >>> model = GridTransformer(image_size=(8, 16, 16), patch_size=4, channels=1, dim=48, depth=2, num_heads=2)
        >>> encoder = GridViT(model)
        >>> str(encoder.grid), encoder.features(torch.zeros(3, 1, 8, 16, 16)).shape
        ('2x4x4', torch.Size([3, 48]))
    """

    architecture = "GridTransformer"
    wraps = GridTransformer

    def __init__(self, module: GridTransformer) -> None:
        sizes = module.model_args
        super().__init__(
            module, grid=module.grid, dim=sizes["dim"], depth=sizes["depth"], num_prefix=sizes["num_prefix"]
        )

    def native(self, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b t d"]:
        """What the model itself returns."""
        out: Tensor = self.module(images)
        return out

    @classmethod
    def rebuild(cls, model_args: Mapping[str, Any]) -> "GridViT":
        """The same model, with weights to be filled in."""
        return cls(GridTransformer(**model_args))

    @classmethod
    def resized(cls, stored: Description, image_size: Size) -> Description:
        """For another input size: another grid, and positions for it."""
        patch = tuple(stored.model_args["patch_size"])
        old = Grid(*(n // p for n, p in zip(stored.model_args["image_size"], patch, strict=True)))
        new, state = grid_for(image_size, patch), dict(stored.state)
        if "positions" in state:
            state["positions"] = resampled(state["positions"], old=old, new=new)
        sides = tuple(n * p for n, p in zip(new.sizes, patch, strict=True))
        return Description({**stored.model_args, "image_size": sides}, state)

    def _stem(self) -> Any:
        return self.module.stem

    def _prefix(self) -> Sequence[Tensor]:
        return [] if self.module.prefix is None else [self.module.prefix]

    def _positions(self) -> tuple[Tensor | None, int]:
        return self.module.positions, 0

    def _spared(self) -> set[str]:
        own = dict(self.module.named_parameters(recurse=False))
        return {name for name in ("positions", "prefix") if name in own}
