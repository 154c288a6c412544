"""Adapter for timm's plain vision transformers (vit_*, deit*, CLIP, SigLIP, DINOv2)."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from timm.layers import PatchDropout, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_blocks.encoders.adapter import TokenAdapter, refuse_relative_positions, refuse_stem
from ssl_blocks.positions import sincos_table
from ssl_blocks.query_stream import QueryBlock
from ssl_blocks.tokenizers import pair
from ssl_blocks.values import Grid


class TimmViT(TokenAdapter):
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
        vit = _refuse_unfit(module)
        super().__init__(
            vit,
            grid=Grid(*vit.patch_embed.grid_size),
            dim=vit.embed_dim,
            depth=len(vit.blocks),
            num_prefix=vit.num_prefix_tokens,
        )
        self.model_args = dict(model_args or {})

    @property
    def module(self) -> VisionTransformer:
        """The user's own model, unpatched."""
        vit = self._modules["module"]  # Dynamo follows no super() here
        assert isinstance(vit, VisionTransformer)
        return vit

    @property
    def norm(self) -> nn.Module:
        """The model's final norm."""
        norm: nn.Module = self.module.norm
        return norm

    @property
    def grad_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass: the model's own flag."""
        return bool(self.module.grad_checkpointing)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks are recomputed in the backward pass."""
        self.module.set_grad_checkpointing(enable)

    def native(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s d"]:
        """timm's own normalised output, prefix first."""
        output: Tensor = self.module.forward_features(images)
        return output

    def _stem(self) -> nn.Conv2d:
        stem: nn.Conv2d = self.module.patch_embed.proj
        return stem

    def _embedded(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.module.patch_embed.norm(tokens)
        return embedded

    def _prefix(self) -> list[Tensor]:
        vit = self.module
        return [t for t in (vit.cls_token, getattr(vit, "dist_token", None), vit.reg_token) if t is not None]

    def _positions(self) -> tuple[Tensor | None, int]:
        return self.module.pos_embed, 0 if self.module.no_embed_class else self.num_prefix

    def _entered(self, x: Tensor) -> Tensor:
        entered: Tensor = self.module.norm_pre(self.module.pos_drop(x))
        return entered

    def _blocks(self, index: Tensor | None) -> Iterable[Callable[..., Tensor]]:
        blocks: nn.Sequential = self.module.blocks
        return blocks

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

    def _spared(self) -> set[str]:
        return set(self.module.no_weight_decay()) | {"reg_token"}


def _refuse_unfit(module: nn.Module) -> VisionTransformer:
    name = type(module).__name__
    if not isinstance(module, VisionTransformer):
        refuse_relative_positions(module)
        raise TypeError(
            f"{name} is not a timm VisionTransformer such as vit_base_patch16_224. The other adapters are TimmEva, "
            "TorchvisionViT, TransformersViT and TorchEncoder"
        )
    require_timm_model(module)
    if isinstance(module.patch_drop, PatchDropout):
        refuse_patch_drop()
    for block in module.blocks:
        if "attn_mask" not in inspect.signature(block.forward).parameters:
            raise TypeError(f"{type(block).__name__} takes no attention mask (attn_mask), so it cannot be kept causal")
    return module


def require_timm_model(module: nn.Module) -> None:
    """Refuse what no family of timm may have: a stem that mixes patches, or a final norm behind the pooling."""
    if type(module.patch_embed) is not PatchEmbed:
        refuse_stem(type(module).__name__, module.patch_embed)
    if isinstance(module.norm, nn.Identity) and not isinstance(module.fc_norm, nn.Identity):
        raise ValueError(
            "the final norm sits behind the pooling (fc_norm), so tokens would stay unnormalised: "
            "build the model with fc_norm=False (Eva: use_fc_norm=False, use_post_transformer_norm=True)"
        )


def refuse_patch_drop() -> None:
    """Say why a model may not drop patches by itself."""
    raise ValueError("patch_drop_rate must be 0: the objective decides which patches the encoder sees")


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


def create(
    name: str, arguments: dict[str, Any], model_args: dict[str, Any], refuse_unfit: Callable[[nn.Module], object]
) -> nn.Module:
    """Build a model of timm; say why where it cannot be built."""
    try:
        model: nn.Module = timm.create_model(name, **arguments)
    except TypeError as error:  # another family: say why it does not fit, rather than which argument it lacks
        refuse_unfit(timm.create_model(name))
        raise TypeError(f"name={name!r} cannot be built with these arguments: {error}") from None
    except AssertionError as error:  # timm's way to say that heads do not divide the width, and the like
        raise ValueError(f"name={name!r} cannot be built with {model_args}: {error}") from None
    return model


def check_model(
    name: str, image_size: int | tuple[int, int], patch_size: int | tuple[int, int], model_args: dict[str, Any]
) -> None:
    """Refuse a name that timm does not know, and sizes that do not divide.

    Raises:
        ValueError: naming the argument.
    """
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
