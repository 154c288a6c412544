"""timm's models: its own files, with the adapter noted beside."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ssl_blocks.encoders.pooled import TimmPooled
from ssl_blocks.encoders.protocol import FeatureEncoder
from ssl_blocks.encoders.regions import TimmRegions
from ssl_blocks.encoders.storage.parts import grid_for, refuse, resampled
from ssl_blocks.encoders.timm_models import TimmAdapter
from ssl_blocks.parts.tokenize import pair
from ssl_blocks.values import Grid


def norm_of(encoder: TimmRegions) -> str | None:
    """Where the norm lies that was given: a name inside the model, nothing for none, ``None`` for timm's own place.

    Raises:
        TypeError: if it lies outside.
    """
    norm = encoder.given_norm
    if norm is None:
        return None
    name = next((name for name, part in encoder.module.named_modules() if part is norm), None)
    if name is None and type(norm) is not nn.Identity:
        refuse(
            "TimmRegions",
            f"norm={type(norm).__name__} is no part of module={type(encoder.module).__name__}, so its weights would "
            "not be saved",
        )
    return name or ""


def load(
    folder: Path, config: Mapping[str, Any], notes: Mapping[str, Any], image_size: int | tuple[int, int] | None
) -> FeatureEncoder:
    """Build the model by timm and put the adapter around it that the notes name, or the one that fits."""
    from ssl_blocks.encoders import wrap  # which imports this module

    model, arguments = timm.create_model(f"local-dir:{folder}", pretrained=True), dict(config.get("model_args") or {})
    if image_size is not None:
        model = _resized(model, folder, image_size)
        if "img_size" in arguments:
            arguments["img_size"] = list(pair(image_size))
    if notes.get("encoder") == "TimmRegions":
        place = notes.get("norm")
        norm = None if place is None else model.get_submodule(place) if place else nn.Identity()
        return TimmRegions(model, norm=norm, model_args=arguments)
    if notes.get("encoder") == "TimmPooled":
        return TimmPooled(model)
    encoder = wrap(model)
    if isinstance(encoder, TimmAdapter):
        encoder.model_args = arguments
    return encoder


def _resized(model: nn.Module, folder: Path, image_size: int | tuple[int, int]) -> nn.Module:
    embed = getattr(model, "patch_embed", None)
    patch = pair(embed.patch_size) if isinstance(embed, PatchEmbed) else (1, 1)
    new = grid_for(image_size, patch)
    if not knows_size(model):
        return model  # convolutions take any size
    if not isinstance(model, VisionTransformer | Eva):
        # windows and tables of relative positions: timm knows them
        again: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=pair(image_size))
        return again
    # by ourselves: older timm takes every stored table for a square one
    assert isinstance(embed, PatchEmbed)
    assert embed.grid_size is not None
    again, state = timm.create_model(f"local-dir:{folder}", img_size=pair(image_size)), model.state_dict()
    if model.pos_embed is not None:
        state["pos_embed"] = resampled(model.pos_embed.detach(), old=Grid(*embed.grid_size), new=new)
    again.load_state_dict(state)
    return again


def knows_size(model: nn.Module) -> bool:
    """Whether its class, or one that it hands its arguments on to, is built for a size of images."""
    return any("img_size" in inspect.signature(kind.__init__).parameters for kind in type(model).__mro__)  # type: ignore[misc]
