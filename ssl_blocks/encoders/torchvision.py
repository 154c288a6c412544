"""Adapter for torchvision's ``VisionTransformer`` (vit_b_16 and its relatives)."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from ssl_blocks.doors import checked
from ssl_blocks.encoders.adapter import (
    DescribedAdapter,
    Description,
    ImageSizeError,
    Size,
    grid_for,
    require_same,
    resampled,
)
from ssl_blocks.encoders.tokens import TokenAdapter, require_plain_attention, require_plain_stem, self_attention
from ssl_blocks.grid import Grid
from ssl_blocks.modes import without_weights

_TABLE = "encoder.pos_embedding"


@checked
class TorchvisionViT(DescribedAdapter[VisionTransformer], TokenAdapter[VisionTransformer]):
    """See a torchvision ``VisionTransformer`` as a token encoder; the model itself stays as it is.

    Its blocks take no mask, so the adapter computes them from the blocks' own layers. ``forward`` of a block is not
    called: hooks on a block, FSDP's among them, do not fire.

    Args:
        module: the model. Give it ``heads=nn.Identity()`` for distributed training: an unused head would stall it.

    Raises:
        TypeError: if it is no torchvision ``VisionTransformer``, its stem mixes patches, or its blocks are of
            another kind.
        ValueError: if its attention looks at more than the sequence itself.

    Examples:
        >>> size = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
        >>> encoder = TorchvisionViT(VisionTransformer(image_size=32, patch_size=8, **size))
        >>> encoder.num_prefix, str(encoder.grid), encoder.features(torch.zeros(1, 3, 32, 32)).shape
        (1, '4x4', torch.Size([1, 16]))
    """

    architecture = "torchvision.VisionTransformer"
    wraps = VisionTransformer
    norm_at, blocks_at = "encoder.ln", "encoder.layers"

    def __init__(self, module: nn.Module) -> None:
        vit = _refuse_unfit(module)
        side = vit.image_size // vit.patch_size
        super().__init__(vit, grid=Grid(side, side), dim=vit.hidden_dim, depth=len(vit.encoder.layers), num_prefix=1)

    def native(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s d"]:
        """torchvision's own normalised output, prefix first."""
        vit = self.module
        tokens = vit._process_input(images)
        output: Tensor = vit.encoder(torch.cat([vit.class_token.expand(len(images), -1, -1), tokens], dim=1))
        return output

    def describe(self) -> Description:
        """The constructor's arguments, read off the model, and its weights."""
        vit = self.module
        arguments = {
            "image_size": vit.image_size,
            "patch_size": vit.patch_size,
            "channels": self.channels,
            "num_layers": self.depth,
            "num_heads": vit.encoder.layers[0].self_attention.num_heads,
            "hidden_dim": vit.hidden_dim,
            "mlp_dim": vit.mlp_dim,
            "dropout": vit.dropout,
            "attention_dropout": vit.attention_dropout,
            "norm_eps": getattr(vit.encoder.ln, "eps", None) or 1e-6,
            "num_classes": _classes(vit),  # none: the head was taken off
            "representation_size": vit.representation_size,
        }
        with without_weights():
            again = self.rebuild(arguments)
        require_same("TorchvisionViT", vit, again.module)
        return Description(arguments, vit.state_dict())

    @classmethod
    def rebuild(cls, model_args: Mapping[str, Any]) -> "TorchvisionViT":
        """The same model, with weights to be filled in."""
        arguments = dict(model_args)
        channels, classes = arguments.pop("channels"), arguments.pop("num_classes")
        norm_layer = partial(nn.LayerNorm, eps=arguments.pop("norm_eps"))
        vit = VisionTransformer(**arguments, num_classes=classes or 1, norm_layer=norm_layer)
        if classes is None:
            vit.heads = nn.Identity()
        if channels != 3:
            vit.conv_proj = nn.Conv2d(channels, vit.hidden_dim, vit.patch_size, vit.patch_size)
        return cls(vit)

    @classmethod
    def resized(cls, stored: Description, image_size: Size) -> Description:
        """For another input size: a square one, for torchvision knows no other."""
        arguments, side = stored.model_args, stored.model_args["patch_size"]
        grid = grid_for(image_size, (side, side))
        if grid.height != grid.width:
            raise ImageSizeError(f"image_size={image_size} must be a square for torchvision's VisionTransformer")
        was = arguments["image_size"] // side
        table = resampled(stored.state[_TABLE], old=Grid(was, was), new=grid)
        return Description({**arguments, "image_size": grid.height * side}, {**stored.state, _TABLE: table})

    def _stem(self) -> Any:
        return self.module.conv_proj

    def _prefix(self) -> list[Tensor]:
        return [self.module.class_token]

    def _positions(self) -> tuple[Tensor | None, int]:
        return self.module.encoder.pos_embedding, 1

    def _entered(self, x: Tensor) -> Any:
        return self.module.encoder.dropout(x)

    def _blocks(self, index: Tensor | None) -> Iterable[Callable[..., Tensor]]:
        return [partial(_run, block) for block in self._layers()]

    def _spared(self) -> set[str]:
        return {"class_token", "encoder.pos_embedding"}


def _run(
    block: EncoderBlock, x: Float[Tensor, "b s d"], attn_mask: Shaped[Tensor, "_ 1 s s"] | None
) -> Float[Tensor, "b s d"]:
    x = x + block.dropout(self_attention(block.self_attention, block.ln_1(x), attn_mask))
    out: Tensor = x + block.mlp(block.ln_2(x))
    return out


def _refuse_unfit(module: nn.Module) -> VisionTransformer:
    if not isinstance(module, VisionTransformer):
        raise TypeError(f"{type(module).__name__} is not a torchvision VisionTransformer such as vit_b_16")
    require_plain_stem("VisionTransformer", module.conv_proj)
    for block in module.encoder.layers:
        if type(block) is not EncoderBlock:
            raise TypeError(f"{type(block).__name__} is not torchvision's EncoderBlock, whose layers the adapter runs")
        require_plain_attention("EncoderBlock", block.self_attention)
    return module


def _classes(vit: VisionTransformer) -> int | None:
    heads: nn.Module = vit.heads
    if isinstance(heads, nn.Identity):
        return None
    head = getattr(heads, "head", None)
    return head.out_features if isinstance(head, nn.Linear) else vit.num_classes
