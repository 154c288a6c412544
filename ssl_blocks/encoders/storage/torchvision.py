"""torchvision's ``VisionTransformer``, stored and built again."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from ssl_blocks.encoders.storage.parts import ImageSizeError, Stored, grid_for, require_same, require_type, resampled
from ssl_blocks.encoders.torchvision import TorchvisionViT
from ssl_blocks.parts.tokenize import pair
from ssl_blocks.values import Grid

NAME = "torchvision.VisionTransformer"
_TABLE = "encoder.pos_embedding"


def describe(encoder: TorchvisionViT) -> Stored:
    """The constructor's arguments, read off the model, and its weights.

    Raises:
        TypeError: if it has parts that those arguments do not build.
    """
    vit = encoder.module
    require_type("TorchvisionViT", "module", vit, VisionTransformer)
    norm = vit.encoder.ln
    require_type("TorchvisionViT", "encoder.ln", norm, nn.LayerNorm)
    assert isinstance(norm, nn.LayerNorm)
    arguments = {
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "channels": encoder.channels,
        "num_layers": encoder.depth,
        "num_heads": vit.encoder.layers[0].self_attention.num_heads,
        "hidden_dim": vit.hidden_dim,
        "mlp_dim": vit.mlp_dim,
        "dropout": vit.dropout,
        "attention_dropout": vit.attention_dropout,
        "norm_eps": norm.eps,
        "num_classes": _classes(vit),  # none: the head was taken off
        "representation_size": vit.representation_size,
    }
    with torch.device("meta"):
        again = rebuild(arguments)
    require_same("TorchvisionViT", vit, again.module)
    return Stored(NAME, arguments, vit.state_dict())


def rebuild(model_args: Mapping[str, Any]) -> TorchvisionViT:
    """The same model, with weights to be filled in."""
    arguments = dict(model_args)
    channels, classes = arguments.pop("channels"), arguments.pop("num_classes")
    norm_layer = partial(nn.LayerNorm, eps=arguments.pop("norm_eps"))
    vit = VisionTransformer(**arguments, num_classes=classes or 1, norm_layer=norm_layer)
    if classes is None:
        vit.heads = nn.Identity()
    if channels != 3:
        vit.conv_proj = nn.Conv2d(channels, vit.hidden_dim, vit.patch_size, vit.patch_size)
    return TorchvisionViT(vit)


def resized(stored: Stored, image_size: int | tuple[int, int]) -> Stored:
    """For another input size: a square one, for torchvision knows no other."""
    arguments, (height, width) = stored.model_args, pair(image_size)
    side = arguments["patch_size"]
    grid = grid_for(image_size, (side, side))
    if height != width:
        raise ImageSizeError(f"image_size={image_size} must be a square for torchvision's VisionTransformer")
    was = arguments["image_size"] // side
    table = resampled(stored.state[_TABLE], old=Grid(was, was), new=grid)
    return Stored(NAME, {**arguments, "image_size": height}, {**stored.state, _TABLE: table})


def _classes(vit: VisionTransformer) -> int | None:
    heads: nn.Module = vit.heads
    if isinstance(heads, nn.Identity):
        return None
    head = getattr(heads, "head", None)
    return head.out_features if isinstance(head, nn.Linear) else vit.num_classes
