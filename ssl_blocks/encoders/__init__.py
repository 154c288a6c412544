"""Encoder adapters: any vision transformer behind one protocol."""

from torch import nn

from ssl_blocks.encoders.loading import load_encoder
from ssl_blocks.encoders.protocol import FeatureEncoder, RegionEncoder, TokenEncoder
from ssl_blocks.encoders.puzzle import PostNormTransformer
from ssl_blocks.encoders.regions import TimmRegions, TokenRegions, timm_regions
from ssl_blocks.encoders.timm import TimmViT, timm_vit

__all__ = [
    "FeatureEncoder",
    "PostNormTransformer",
    "RegionEncoder",
    "TimmRegions",
    "TimmViT",
    "TokenEncoder",
    "TokenRegions",
    "load_encoder",
    "timm_regions",
    "timm_vit",
    "wrap",
]


def wrap(module: nn.Module) -> TokenEncoder:
    """Pick the adapter that fits a model.

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
    if isinstance(module, PostNormTransformer):
        return module
    return TimmViT(module)
