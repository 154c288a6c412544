"""Adapter for timm's plain vision transformers (vit_*, deit*, CLIP, SigLIP, DINOv2)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ssl_blocks.encoders.adapter import refuse_relative_positions
from ssl_blocks.encoders.timm_models import TimmAdapter, check_model, create, require_fit
from ssl_blocks.positions import sincos_table
from ssl_blocks.query_stream import QueryBlock
from ssl_blocks.tokenizers import pair


class TimmViT(TimmAdapter):
    """See a timm ``VisionTransformer`` as a token encoder; the model itself stays as it is.

    Args:
        module: the model. Build it with ``num_classes=0``: an unused head would stall distributed training.
        model_args: arguments that ``timm.create_model`` needs to build it again, noted in exports. ``timm_vit``
            fills them in, and timm 1.0.31 remembers them by itself.

    Raises:
        TypeError: if it is no plain vision transformer: its stem mixes patches, its attention carries relative
            position biases, or its blocks take no mask.
        ValueError: if it drops patches at random, or its final norm sits behind the pooling.

    Examples:
        >>> import timm
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=2, num_classes=0)
        >>> encoder = TimmViT(vit)
        >>> encoder.num_prefix, str(encoder.grid), encoder.features(torch.zeros(1, 3, 32, 32)).shape
        (1, '8x8', torch.Size([1, 192]))
    """

    def __init__(self, module: nn.Module, *, model_args: Mapping[str, Any] | None = None) -> None:
        super().__init__(_refuse_unfit(module), model_args=model_args)

    @property
    def module(self) -> VisionTransformer:
        """The user's own model, unpatched."""
        vit = self._modules["module"]  # Dynamo follows no super() here
        assert isinstance(vit, VisionTransformer)
        return vit

    def query_blocks(self, depth: int) -> tuple[QueryBlock, ...]:
        """The first ``depth`` blocks, run on queries with the same weights (SAIM with shared weights).

        Not for parameters dealt out over processes (FSDP): a block's weights are gathered only when it runs on content.

        Raises:
            ValueError: if there are fewer blocks.
            TypeError: if they are not timm's plain ``Block``.
        """
        if not 1 <= depth <= self.depth:
            raise ValueError(f"depth={depth} must be at least 1 and at most the encoder's {self.depth} blocks")
        return tuple(QueryBlock(block) for block in self.module.blocks[:depth])


def _refuse_unfit(module: nn.Module) -> VisionTransformer:
    name = type(module).__name__
    if not isinstance(module, VisionTransformer):
        refuse_relative_positions(module)
        raise TypeError(
            f"{name} is not a timm VisionTransformer such as vit_base_patch16_224. The other adapters are TimmEva, "
            "TorchvisionViT, TransformersViT and TorchEncoder"
        )
    require_fit(module)
    return module


def timm_vit(
    name: str = "vit_tiny_patch16_224",
    *,
    image_size: int | tuple[int, int],
    patch_size: int | tuple[int, int],
    channels: int = 3,
    positions: Literal["sincos", "learned", "none"] = "sincos",
    class_token: bool = False,
    **model_args: Any,
) -> TimmViT:
    """Build a timm vision transformer for pretraining, and wrap it.

    It has no head and pools by averaging the normalised patch tokens, so that calling the exported model
    returns the same features as the adapter.

    Args:
        name: any name that timm builds as a ``VisionTransformer``.
        image_size: height and width in pixels; one number means a square.
        patch_size: height and width of a patch in pixels.
        channels: colour channels of the images.
        positions: ``"sincos"`` fixed (MAE's table, stored in ``pos_embed`` and not trained), ``"learned"``, or
            ``"none"``.
        class_token: whether to keep a class token.
        **model_args: handed to timm, for example ``depth=4, embed_dim=64, num_heads=4``.

    Raises:
        ValueError: if the name is unknown, the patch does not divide the image, the width does not divide into
            heads, ``positions`` is none of the three, or would overwrite pretrained ones.
        TypeError: if the model is no plain vision transformer.

    Examples:
        >>> encoder = timm_vit(image_size=32, patch_size=4, depth=2)
        >>> encoder.num_prefix, encoder.module.pos_embed.requires_grad
        (0, False)
    """
    if positions not in ("sincos", "learned", "none"):
        raise ValueError(f"positions={positions!r} must be 'sincos', 'learned' or 'none'")
    if model_args.get("pretrained") and positions == "sincos":
        raise ValueError("positions='sincos' would overwrite those of pretrained=True: use positions='learned'")
    check_model(name, image_size, patch_size, model_args)
    arguments = {
        "img_size": pair(image_size),
        "patch_size": pair(patch_size),
        "in_chans": channels,
        "class_token": class_token,
        "pos_embed": "none" if positions == "none" else "learn",
        "global_pool": "avg",
        "fc_norm": False,
        "num_classes": 0,
        **model_args,
    }
    model = create(name, arguments, model_args, _refuse_unfit)
    encoder = TimmViT(model, model_args=arguments)
    if not model_args.get("pretrained"):
        initialize(encoder, fixed_positions=positions == "sincos")
    return encoder


def initialize(encoder: TimmViT, *, fixed_positions: bool) -> None:
    """Draw prefix tokens, and set up a fixed position table, as MAE does."""
    vit = encoder.module
    for token in (vit.cls_token, vit.reg_token):
        if token is not None:
            # of timm's 1e-6 the first layer norm would make a gradient of thousands, for under a causal mask prefix
            # tokens see only each other
            nn.init.normal_(token, std=0.02)
    if fixed_positions:
        table = vit.pos_embed
        assert table is not None
        table.requires_grad_(False)
        with torch.no_grad():
            table.zero_()  # the rows of prefix tokens stay so
            table[0, -encoder.grid.num_tokens :] = sincos_table(encoder.grid, encoder.dim)
