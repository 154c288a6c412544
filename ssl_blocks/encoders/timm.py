"""Adapter for timm's plain vision transformers (vit_*, deit*, CLIP, SigLIP, DINOv2)."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers import PatchDropout, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_blocks.encoders.blocks import run_blocks
from ssl_blocks.positions import sincos_table
from ssl_blocks.query_stream import QueryBlock
from ssl_blocks.tokenizers import pair
from ssl_blocks.values import Encoded, Grid


class TimmViT(nn.Module):
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
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=2, num_classes=0)
        >>> encoder = TimmViT(vit)
        >>> encoder.num_prefix, str(encoder.grid), encoder.features(torch.zeros(1, 3, 32, 32)).shape
        (1, '8x8', torch.Size([1, 192]))
    """

    def __init__(self, module: nn.Module, *, model_args: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.model_args = dict(model_args or {})
        vit = _refuse_unfit(module)
        self._modules["module"] = vit
        height, width = vit.patch_embed.grid_size
        self.dim, self.depth, self.num_prefix = vit.embed_dim, len(vit.blocks), vit.num_prefix_tokens
        self.grid, self.patch = Grid(height, width), pair(vit.patch_embed.patch_size)
        self.channels = vit.patch_embed.proj.in_channels

    @property
    def module(self) -> VisionTransformer:
        """The user's own model, unpatched."""
        # a property: from Python 3.12 on, isinstance of a protocol passes over what nn.Module keeps elsewhere
        vit = self._modules["module"]
        assert isinstance(vit, VisionTransformer)
        return vit

    @property
    def norm(self) -> nn.Module:
        """The model's final norm."""
        norm: nn.Module = self.module.norm
        return norm

    def embed(self, x: Float[Tensor, "..."]) -> Float[Tensor, "b n d"]:
        """Turn images ``[B, C, H, W]`` or patches ``[B, n, C, p, q]`` into tokens ``[B, n, D]``.

        Raises:
            ValueError: if the pixels are not the encoder's: image size, patch size or channels.
        """
        images = x.ndim == 4
        have = tuple(x.shape[-3:])
        size = (self.grid.height * self.patch[0], self.grid.width * self.patch[1])
        want = (self.channels, *(size if images else self.patch))
        if x.ndim not in (4, 5) or have != want:
            raise ValueError(
                f"{'images' if images else 'patches'} of shape {tuple(x.shape)} do not fit the encoder: "
                f"expected [B, {'' if images else 'n, '}{', '.join(map(str, want))}]"
            )
        stem = self.module.patch_embed
        if images:
            tokens = stem.proj(x).flatten(2).transpose(1, 2)
        else:  # a convolution whose kernel is its stride is one product per patch
            tokens = F.linear(x.flatten(2), stem.proj.weight.flatten(1), stem.proj.bias)
        embedded: Tensor = stem.norm(tokens)
        return embedded

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
        vit = self.module
        x = vit.norm_pre(vit.pos_drop(self._place(tokens, index)))
        hidden = run_blocks(vit.blocks, x, mask, checkpointing=vit.grad_checkpointing)
        return Encoded(hidden=hidden, final=vit.norm(hidden[-1]))

    def _place(self, tokens: Tensor, index: Tensor | None) -> Tensor:
        """Add looked-up positions and put class, distillation and register tokens in front."""
        vit = self.module
        prefix = [t for t in (vit.cls_token, getattr(vit, "dist_token", None), vit.reg_token) if t is not None]
        front = torch.cat(prefix, dim=1) if prefix else None
        if vit.pos_embed is not None:
            rows = 0 if vit.no_embed_class else self.num_prefix
            if index is not None:
                tokens = tokens + vit.pos_embed[0, rows:][index]
            if front is not None and rows:
                front = front + vit.pos_embed[:, :rows]
        if front is None:
            return tokens
        return torch.cat([front.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)

    def features(self, images: Float[Tensor, "..."]) -> Float[Tensor, "b d"]:
        """Mean over the patch tokens of the normalised output, ``[B, D]`` (RandSAC, Sec. 5.1).

        Args:
            images: ``[B, C, H, W]``, or all their patches ``[B, N, C, p, q]`` in raster order.
        """
        index = torch.arange(self.grid.num_tokens, device=images.device).expand(images.shape[0], -1)
        return self.encode(self.embed(images), index).final[:, self.num_prefix :].mean(1)

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

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare: positions and prefix tokens."""
        return {f"module.{name}" for name in self.module.no_weight_decay() | {"reg_token"}}


def _refuse_unfit(module: nn.Module) -> VisionTransformer:
    name = type(module).__name__
    if not isinstance(module, VisionTransformer):
        names = [*dict(module.named_modules()), *dict(module.named_parameters())]
        if any("rel_pos" in n or "relative_position" in n for n in names):
            raise TypeError(
                f"{name} adds relative position biases for a full raster grid; segments in another order would get "
                "wrong ones. Use a model with absolute positions, such as vit_base_patch16_224"
            )
        raise TypeError(f"{name} is not a timm VisionTransformer such as vit_base_patch16_224")
    if type(module.patch_embed) is not PatchEmbed:
        raise TypeError(
            f"{name} has a {type(module.patch_embed).__name__} stem, which mixes pixels of neighbouring patches: "
            "hidden patches would leak into visible ones. Use a model with a plain patch embedding"
        )
    if isinstance(module.patch_drop, PatchDropout):
        raise ValueError("patch_drop_rate must be 0: the objective decides which patches the encoder sees")
    if isinstance(module.norm, nn.Identity) and not isinstance(module.fc_norm, nn.Identity):
        raise ValueError(
            "the final norm sits behind the pooling (fc_norm), so tokens would stay unnormalised: "
            "build the model with fc_norm=False"
        )
    for block in module.blocks:
        if "attn_mask" not in inspect.signature(block.forward).parameters:
            raise TypeError(f"{type(block).__name__} takes no attention mask (attn_mask), so it cannot be kept causal")
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
    _check_model(name, image_size, patch_size, model_args)
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
    try:
        model = timm.create_model(name, **arguments)
    except TypeError as error:  # another family: say why it does not fit, rather than which argument it lacks
        _refuse_unfit(timm.create_model(name))
        raise TypeError(f"name={name!r} cannot be built with these arguments: {error}") from None
    except AssertionError as error:  # timm's way to say that heads do not divide the width, and the like
        raise ValueError(f"name={name!r} cannot be built with {model_args}: {error}") from None
    encoder = TimmViT(model, model_args=arguments)
    if not model_args.get("pretrained"):
        _initialize(encoder, fixed_positions=positions == "sincos")
    return encoder


def _initialize(encoder: TimmViT, *, fixed_positions: bool) -> None:
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


def _check_model(
    name: str, image_size: int | tuple[int, int], patch_size: int | tuple[int, int], model_args: dict[str, Any]
) -> None:
    check_name(name)
    for length, side in zip(pair(image_size), pair(patch_size), strict=True):
        if side < 1 or length % side:
            raise ValueError(
                f"patch_size={patch_size} must divide image_size={image_size} ({length} % {side} is not 0)"
            )
    width, heads = model_args.get("embed_dim"), model_args.get("num_heads")
    if width is not None and heads is not None and width % heads:
        raise ValueError(f"num_heads={heads} must divide embed_dim={width}")


def check_name(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ValueError: with names that are near it.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"name={name!r} is no timm model" + (f"; did you mean one of {near}?" if near else ""))
