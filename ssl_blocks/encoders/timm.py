"""Adapter for timm's plain vision transformers (vit_*, deit*, CLIP, SigLIP, DINOv2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_blocks.bounds import Channels
from ssl_blocks.doors import checked
from ssl_blocks.encoders.adapter import Size
from ssl_blocks.encoders.timm_building import as_saved, build_model, create_pretrained, placed, prepared, rebuilding
from ssl_blocks.encoders.timm_models import TimmAdapter, require_fit
from ssl_blocks.encoders.tokens import PlainBlocks, refuse_relative_positions
from ssl_blocks.grid import Grid
from ssl_blocks.parts.position import sincos_table


@checked
class TimmViT(TimmAdapter[VisionTransformer], PlainBlocks[VisionTransformer]):
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

    wraps = nn.Module  # the last family to be asked says why others do not fit

    def __init__(self, module: nn.Module, *, model_args: Mapping[str, Any] | None = None) -> None:
        super().__init__(_refuse_unfit(module), model_args=model_args)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether it is a configuration of timm: what no other family reads."""
        return "architecture" in config

    def _finish(self, fresh: nn.Module, folder: Path) -> None:
        """Set up prefix tokens, and a table that is fixed, as ``timm_vit`` does."""
        stored = as_saved(f"local-dir:{folder}", VisionTransformer, _refuse_unfit)
        table = load_file(folder / "model.safetensors").get("pos_embed")
        fixed = table is not None and is_sincos(table[0], Grid(*stored.patch_embed.grid_size))
        initialize(TimmViT(fresh), fixed_positions=fixed)


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


@checked
def timm_vit(
    name: str = "vit_tiny_patch16_224",
    *,
    image_size: Size,
    patch_size: Size | None = None,
    channels: Channels = 3,
    positions: Literal["sincos", "learned", "none"] | None = None,
    class_token: bool | None = None,
    pretrained: bool = False,
    **model_args: Any,
) -> TimmViT:
    """Build a timm vision transformer for pretraining, and wrap it.

    It has no head and pools by averaging the normalised patch tokens, so that calling the exported model
    returns the same features as the adapter.

    With ``pretrained=True`` all weights but those of the head are loaded, or the call is refused. Where ``image_size``,
    ``patch_size`` or ``channels`` are not those of the weights, timm resamples the positions and the kernels of the
    patch embedding, and adds up or repeats its colours. On the meta device nothing is loaded.

    Args:
        name: any name that timm builds as a ``VisionTransformer``, with a tag or without; ``local-dir:FOLDER`` is an
            exported encoder, and ``hf-hub:OWNER/NAME`` a repository.
        image_size: height and width in pixels; one number means a square.
        patch_size: height and width of a patch in pixels; ``None`` is the model's own.
        channels: colour channels of the images.
        positions: ``"sincos"`` fixed (MAE's table, stored in ``pos_embed`` and not trained), ``"learned"``, or
            ``"none"``. ``None`` is ``"sincos"``; for pretrained weights it is their own table, which stays fixed if it
            is MAE's for this grid, and is trained otherwise.
        class_token: whether to keep a class token; ``None`` means no, and for pretrained weights what they have.
        pretrained: start from the weights that belong to the name.
        **model_args: handed to timm, for example ``depth=4, embed_dim=64, num_heads=4``.

    Raises:
        ValueError: if the name is unknown, the patch does not divide the image, the width does not divide into
            heads, ``positions`` is none of the three, an argument contradicts pretrained weights, or they cannot be
            loaded.
        FileNotFoundError: if the folder holds no model.
        TypeError: if the model is no plain vision transformer.

    Examples:
        >>> encoder = timm_vit(image_size=32, patch_size=4, depth=2)
        >>> encoder.num_prefix, encoder.module.pos_embed.requires_grad
        (0, False)
    """
    if positions not in (None, "sincos", "learned", "none"):
        raise ValueError(f"positions={positions!r} must be 'sincos', 'learned' or 'none'")
    name = placed(name)
    wanted = {**model_args, "class_token": class_token}
    saved, arguments = prepared(
        name, VisionTransformer, _refuse_unfit, image_size, patch_size, channels, pretrained, wanted
    )
    arguments |= {"fc_norm": False, **model_args}
    if pretrained:
        if positions is not None and (positions == "none") != (saved.pos_embed is None):
            raise ValueError(
                f"positions={positions!r} contradicts the pretrained {name!r}, which has "
                f"{'no' if saved.pos_embed is None else 'a'} table: leave positions out"
            )
        encoder = TimmViT(create_pretrained(name, arguments), model_args=rebuilding(name, arguments))
        _keep_positions(encoder, positions)
        return encoder
    arguments = {"class_token": bool(class_token), "pos_embed": "none" if positions == "none" else "learn"} | arguments
    encoder = TimmViT(build_model(name, arguments, model_args, _refuse_unfit), model_args=arguments)
    initialize(encoder, fixed_positions=positions in (None, "sincos"))
    return encoder


def _keep_positions(encoder: TimmViT, positions: str | None) -> None:
    """Leave a fixed table fixed, and train any other."""
    table = encoder.module.pos_embed
    if table is None:
        return
    fixed = positions == "sincos" if table.is_meta else is_sincos(table.detach()[0], encoder.grid)
    if positions == "sincos" and not fixed:
        raise ValueError(
            "positions='sincos' would overwrite those of pretrained=True: leave positions out, or use 'learned'"
        )
    table.requires_grad_(positions == "learned" or not fixed)


def is_sincos(table: Tensor, grid: Grid) -> bool:
    """Whether a table ``[P + N, D]`` is the fixed one of a grid, with zeros for prefix tokens."""
    prefix, width = len(table) - grid.num_tokens, table.shape[-1]
    if width % 4 or table[:prefix].any():
        return False
    return torch.allclose(table[prefix:], sincos_table(grid, width).to(table), rtol=0, atol=1e-5)


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
