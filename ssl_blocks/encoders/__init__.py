"""Encoder adapters: any vision transformer behind one protocol."""

from ssl_blocks.encoders.eva import TimmEva, timm_eva
from ssl_blocks.encoders.families import ADAPTERS, wrap
from ssl_blocks.encoders.hub import export_encoder, load_encoder, trace_features, untrained
from ssl_blocks.encoders.looking import attention_weights
from ssl_blocks.encoders.pooled import TimmPooled
from ssl_blocks.encoders.postnorm import PostNormTransformer
from ssl_blocks.encoders.protocol import FeatureEncoder, RegionEncoder, TokenEncoder
from ssl_blocks.encoders.regions import TimmRegions, TokenRegions, timm_regions
from ssl_blocks.encoders.timm import TimmViT, timm_vit
from ssl_blocks.encoders.torch import TorchEncoder
from ssl_blocks.encoders.torchvision import TorchvisionViT
from ssl_blocks.encoders.transformers import TransformersViT

__all__ = [
    "ADAPTERS",
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
    "attention_weights",
    "export_encoder",
    "load_encoder",
    "timm_eva",
    "timm_regions",
    "timm_vit",
    "trace_features",
    "untrained",
    "wrap",
]
