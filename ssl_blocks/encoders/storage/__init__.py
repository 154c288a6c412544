"""How each kind of encoder is described by plain values, and built from them again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from ssl_blocks.encoders.postnorm import PostNormTransformer
from ssl_blocks.encoders.protocol import FeatureEncoder, TokenEncoder
from ssl_blocks.encoders.storage import layers, postnorm, timm, torchvision, transformers
from ssl_blocks.encoders.storage.parts import ImageSizeError, Stored
from ssl_blocks.encoders.storage.timm import norm_of
from ssl_blocks.encoders.torch import TorchEncoder
from ssl_blocks.encoders.torchvision import TorchvisionViT

__all__ = ["ImageSizeError", "Stored", "describe", "norm_of", "rebuild"]


class _Kind(Protocol):
    def rebuild(self, model_args: Mapping[str, Any], /) -> TokenEncoder: ...

    def resized(self, stored: Stored, image_size: int | tuple[int, int], /) -> Stored: ...


KINDS: dict[str, _Kind] = {"PostNormTransformer": postnorm, torchvision.NAME: torchvision, layers.NAME: layers}


def describe(encoder: object) -> Stored | None:
    """An encoder as plain values and weights; ``None`` for what timm and transformers save themselves, and others.

    Raises:
        TypeError: if it has a part that cannot be built again.
    """
    if isinstance(encoder, TorchvisionViT):
        return torchvision.describe(encoder)
    if isinstance(encoder, TorchEncoder):
        return layers.describe(encoder)
    module = getattr(encoder, "module", None)
    return postnorm.describe(module) if isinstance(module, PostNormTransformer) else None


def rebuild(folder: Path, config: Mapping[str, Any], image_size: int | tuple[int, int] | None) -> FeatureEncoder:
    """Build what a folder's configuration describes, and fill in the weights beside it.

    Raises:
        ImageSizeError: if the encoder cannot have this input size.
    """
    weights = folder / "model.safetensors"
    if "architecture" not in config and "model_type" in config:
        return transformers.load(config, load_file(weights), image_size)
    kind = KINDS.get(config["architecture"])
    if kind is None:
        return timm.load(folder, config, config.get("ssl_blocks") or {}, image_size)
    stored = Stored(config["architecture"], config["model_args"], load_file(weights))
    if image_size is not None:
        stored = kind.resized(stored, image_size)
    with torch.device("meta"):  # no weights are drawn, and no random numbers used up
        encoder = kind.rebuild(stored.model_args)
    # copies: what was read lies in the file's own memory, and not where kernels would have it
    state = {name: weight.clone() for name, weight in stored.state.items()}
    encoder.module.load_state_dict(state, assign=True)
    return encoder
