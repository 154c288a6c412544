"""Encoder adapters: any vision transformer behind one protocol."""

from timm.models.eva import Eva
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from ssl_blocks.encoders.eva import TimmEva, timm_eva
from ssl_blocks.encoders.export import export_encoder
from ssl_blocks.encoders.loading import load_encoder
from ssl_blocks.encoders.pooled import TimmPooled
from ssl_blocks.encoders.postnorm import PostNormTransformer
from ssl_blocks.encoders.protocol import FeatureEncoder, RegionEncoder, TokenEncoder
from ssl_blocks.encoders.regions import TimmRegions, TokenRegions, timm_regions
from ssl_blocks.encoders.timm import TimmViT, timm_vit
from ssl_blocks.encoders.torch import TorchEncoder
from ssl_blocks.encoders.torchvision import TorchvisionViT
from ssl_blocks.encoders.transformers import TransformersViT
from ssl_blocks.encoders.untrained import untrained

__all__ = [
    "FeatureEncoder",
    "PostNormTransformer",
    "RegionEncoder",
    "TimmEva",
    "TimmPooled",
    "TimmRegions",
    "TimmViT",
    "TokenEncoder",
    "TokenRegions",
    "TorchEncoder",
    "TorchvisionViT",
    "TransformersViT",
    "export_encoder",
    "load_encoder",
    "timm_eva",
    "timm_regions",
    "timm_vit",
    "untrained",
    "wrap",
]


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
    if isinstance(module, PostNormTransformer):
        return module
    if isinstance(module, Eva):
        return TimmEva(module)
    if isinstance(module, VisionTransformer):
        return TorchvisionViT(module)
    if type(module).__module__.startswith("transformers."):
        return TransformersViT(module)
    if isinstance(module, nn.TransformerEncoder):
        raise TypeError("an nn.TransformerEncoder has no patch stem: use TorchEncoder(encoder, stem=..., grid=...)")
    return TimmViT(module)
