"""The families of encoders, in one list that all that tells them apart walks over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.adapter import Adapter, Size
from ssl_blocks.encoders.eva import TimmEva
from ssl_blocks.encoders.grid import GridViT
from ssl_blocks.encoders.pooled import TimmPooled
from ssl_blocks.encoders.postnorm import PostNormTransformer
from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.encoders.regions import TimmRegions, TokenRegions
from ssl_blocks.encoders.timm import TimmViT
from ssl_blocks.encoders.torch import TorchEncoder
from ssl_blocks.encoders.torchvision import TorchvisionViT
from ssl_blocks.encoders.transformers import TransformersViT

# asked in this order whose a model or a configuration is; the last takes what is left
ADAPTERS: tuple[type[Adapter[Any]], ...] = (
    TokenRegions,
    TimmRegions,
    TimmPooled,
    PostNormTransformer,
    GridViT,
    TorchvisionViT,
    TransformersViT,
    TorchEncoder,
    TimmEva,
    TimmViT,
)


@checked
def wrap(module: nn.Module) -> TokenEncoder:
    """Pick the adapter that fits a model of timm, torchvision or transformers.

    Args:
        module: the model; it is not changed.

    Raises:
        TypeError: if no adapter fits, with the reason.
        ValueError: if the model was built with options that no objective can work with.

    Examples:
        >>> import timm
        >>> type(wrap(timm.create_model("vit_tiny_patch16_224", num_classes=0))).__name__
        'TimmViT'
    """
    found = next(encoder for adapter in ADAPTERS if (encoder := adapter.of(module)) is not None)
    assert isinstance(found, TokenEncoder)
    return found


def rebuild(folder: Path, config: Mapping[str, Any], image_size: Size | None) -> Adapter[Any]:
    """Build what a folder's configuration describes, and fill in the weights beside it."""
    adapter = next((adapter for adapter in ADAPTERS if adapter.reads(config)), None)
    if adapter is None:
        raise ValueError("config.json names neither an architecture nor a model_type")
    return adapter.load(folder, config, image_size)
