"""Vision transformers of torchvision and transformers by name, drawn anew or with their weights."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision
from torch import nn

from ssl_blocks.bounds import Channels, Depth, Heads, Tokens, Width
from ssl_blocks.doors import checked
from ssl_blocks.encoders.adapter import Size
from ssl_blocks.encoders.hub import load_encoder
from ssl_blocks.encoders.protocol import FeatureEncoder
from ssl_blocks.encoders.timm_building import LOCAL, is_on_hub, reason_of, require_divisible
from ssl_blocks.encoders.torchvision import TorchvisionViT
from ssl_blocks.encoders.transformers import MODELS, TransformersViT
from ssl_blocks.modes import without_weights
from ssl_blocks.parts.tokenize import pair

FILES = ["config.json", "model.safetensors"]
SAID = {  # what transformers calls sizes
    "patch_size": "patch_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "channels": "num_channels",
}
E = TypeVar("E", bound=nn.Module)


@checked
def torchvision_vit(
    name: str = "vit_b_16",
    *,
    image_size: Size,
    patch_size: Tokens | None = None,
    channels: Channels = 3,
    width: Width | None = None,
    depth: Depth | None = None,
    heads: Heads | None = None,
    pretrained: bool = False,
) -> TorchvisionViT:
    """Build a vision transformer of torchvision without its head, and wrap it.

    Args:
        name: one of torchvision's, which gives all sizes not set here, or ``local-dir:FOLDER`` of an export.
        image_size: side in pixels; torchvision knows squares alone.
        patch_size: side of a patch in pixels; ``None``: the model's.
        channels: colour channels of the images.
        width: token width; the MLP's follows it. ``None``: the model's.
        depth: number of blocks; ``None``: the model's.
        heads: attention heads; ``None``: the model's.
        pretrained: start from torchvision's newest weights of the name, or from the folder's; positions are resampled
            for another image size. On the meta device nothing is loaded.

    Raises:
        ValueError: if the name is unknown, sizes do not fit each other or contradict the weights.
        FileNotFoundError: if the folder holds no model.
        TypeError: if the folder holds a model of another family.

    Examples:
        >>> encoder = torchvision_vit(image_size=32, patch_size=8, width=32, depth=2, heads=2)
        >>> str(encoder.grid), encoder.num_prefix
        ('4x4', 1)
    """
    (height, length), sizes = pair(image_size), {"patch_size": patch_size, "width": width, "depth": depth}
    if height != length:
        raise ValueError(f"image_size={image_size} must be a square for torchvision's VisionTransformer")
    if name.startswith(f"{LOCAL}:"):
        return _stored(name, TorchvisionViT, image_size, pretrained, channels=channels, heads=heads, **sizes)
    known = [model for model in torchvision.models.list_models() if model.startswith("vit_")]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"name={name!r} is no vision transformer of torchvision: {', '.join(known)}{hint}")
    with without_weights():
        saved: Any = TorchvisionViT(torchvision.models.get_model(name))
    arguments = saved.describe().model_args
    if pretrained:
        _refuse_contradictions(name, saved, channels=channels, heads=heads, **sizes)
        load = torch.get_default_device().type != "meta"
        model: Any = torchvision.models.get_model(name, weights="DEFAULT") if load else saved.module
        model.heads = nn.Identity()
        return _resized(TorchvisionViT(model), height)
    ratio = arguments["mlp_dim"] / arguments["hidden_dim"]
    given = {"patch_size": patch_size, "hidden_dim": width, "num_layers": depth, "num_heads": heads}
    arguments |= {key: value for key, value in given.items() if value is not None}
    arguments |= {"image_size": height, "channels": channels, "num_classes": None}
    arguments["mlp_dim"] = round(arguments["hidden_dim"] * ratio)
    fits = {"embed_dim": arguments["hidden_dim"], "num_heads": arguments["num_heads"]}
    require_divisible(image_size, arguments["patch_size"], fits)
    return TorchvisionViT.rebuild(arguments)


@checked
def transformers_vit(
    name: str = "vit",
    *,
    image_size: Size,
    patch_size: Tokens | None = None,
    channels: Channels = 3,
    width: Width | None = None,
    depth: Depth | None = None,
    heads: Heads | None = None,
    pretrained: bool = False,
) -> TransformersViT:
    """Build a vision transformer of Hugging Face transformers (extra ``hf``), and wrap it.

    What pretraining does not use is left out or frozen: the pooling layer, and the mask token.

    Args:
        name: a type of model, which gives all sizes not set here: ``vit``, ``dinov2``, ``dinov2_with_registers`` or
            ``dinov3_vit``; or where weights are: ``local-dir:FOLDER`` of an export, ``hf-hub:OWNER/NAME``.
        image_size: height and width in pixels; one number means a square.
        patch_size: side of a patch in pixels; ``None``: the model's.
        channels: as for `torchvision_vit`, and ``width``, ``depth`` and ``heads``.
        pretrained: start from the weights of the folder or repository; positions are resampled for another image size.

    Raises:
        ValueError: if the name is unknown, sizes do not fit each other or contradict the weights, or transformers is
            not installed.
        FileNotFoundError: if the folder holds no model.
        TypeError: if the folder holds a model of another family.

    Examples:
        >>> encoder = transformers_vit("dinov2", image_size=32, patch_size=8, width=32, depth=2, heads=2)
        >>> str(encoder.grid), encoder.num_prefix
        ('4x4', 1)
    """
    try:
        import transformers  # the extra hf
    except ImportError as error:
        raise ValueError(
            f"name={name!r} needs transformers to be installed: pip install 'ssl_blocks[hf]' ({error})"
        ) from None
    sizes = {"patch_size": patch_size, "width": width, "depth": depth, "heads": heads, "channels": channels}
    if ":" in name:
        encoder = _stored(name, TransformersViT, image_size, pretrained, **sizes)
    else:
        encoder = _drawn(transformers, name, image_size, pretrained, **sizes)
    model: Any = encoder.module
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    mask_token = getattr(model.embeddings, "mask_token", None)
    if mask_token is not None:
        mask_token.requires_grad_(False)
    return encoder


def _drawn(transformers: Any, name: str, image_size: Size, pretrained: bool, **sizes: int | None) -> TransformersViT:
    if name not in MODELS or pretrained:
        why = "names no weights" if name in MODELS else f"is none of {', '.join(MODELS)}"
        raise ValueError(f"name={name!r} {why}: give local-dir:FOLDER or hf-hub:OWNER/NAME to start from weights")
    of = getattr(transformers, f"{MODELS[name]}Config")
    own = of()
    arguments: dict[str, Any] = {SAID[size]: value for size, value in sizes.items() if value is not None}
    if "hidden_size" in arguments and hasattr(own, "intermediate_size"):
        arguments["intermediate_size"] = round(own.intermediate_size / own.hidden_size * arguments["hidden_size"])
    config = of(image_size=list(pair(image_size)), **arguments)
    require_divisible(
        image_size, config.patch_size, {"embed_dim": config.hidden_size, "num_heads": config.num_attention_heads}
    )
    config._attn_implementation = "sdpa"
    options = {"add_pooling_layer": False} if name == "vit" else {}
    return TransformersViT(getattr(transformers, f"{MODELS[name]}Model")(config, **options))


@checked
def num_heads(encoder: FeatureEncoder) -> int:
    """Attention heads of an encoder's blocks.

    Raises:
        ValueError: if its model does not tell.
    """
    names = ("num_heads", "num_attention_heads")
    for part in encoder.module.modules():
        for found in (getattr(part, name, None) for name in names):
            if isinstance(found, int):
                return found
    raise ValueError(f"{type(encoder.module).__name__} does not tell how many attention heads it has: give heads")


def _stored(name: str, kind: type[E], image_size: Size, pretrained: bool, **sizes: Any) -> E:
    """An encoder of a family out of a folder or a repository, ready to be trained."""
    if not pretrained:
        raise ValueError(f"name={name!r} names weights: start from them (pretrained=True), or name a kind of model")
    place = name.partition(":")[2]
    if is_on_hub(name):
        from huggingface_hub import snapshot_download  # comes with timm, and is slow to import

        try:
            place = snapshot_download(place, allow_patterns=FILES)
        except Exception as error:  # networks and hubs fail in their own ways
            raise ValueError(f"name={name!r} cannot be read: {reason_of(error)}") from error
    with torch.device("cpu"):
        encoder = load_encoder(Path(place), image_size=image_size)
    if not isinstance(encoder, kind):
        raise TypeError(f"name={name!r} must hold an encoder for {kind.__name__}, but holds a {type(encoder).__name__}")
    _refuse_contradictions(name, encoder, **sizes)
    return encoder.to(torch.get_default_device()).train()


def _refuse_contradictions(name: str, encoder: Any, **wanted: Any) -> None:
    there = {
        "patch_size": encoder.patch[0],
        "channels": encoder.channels,
        "width": encoder.dim,
        "depth": encoder.depth,
        "heads": num_heads(encoder),
    }
    for argument, value in there.items():
        if wanted.get(argument) not in (None, value):
            raise ValueError(f"{argument}={wanted[argument]} contradicts the pretrained {name!r}, which has {value}")


def _resized(encoder: TorchvisionViT, side: int) -> TorchvisionViT:
    if encoder.module.image_size == side:
        return encoder
    fitted = TorchvisionViT.resized(encoder.describe(), side)
    again = TorchvisionViT.rebuild(fitted.model_args)
    again.module.load_state_dict(fitted.state)
    return again
