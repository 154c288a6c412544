"""Encoder adapters: any vision transformer behind one protocol."""

from ssl_blocks.encoders.building import (
    num_heads as num_heads,
    torchvision_vit as torchvision_vit,
    transformers_vit as transformers_vit,
)
from ssl_blocks.encoders.eva import TimmEva as TimmEva, is_eva as is_eva, timm_eva as timm_eva
from ssl_blocks.encoders.families import ADAPTERS as ADAPTERS, wrap as wrap
from ssl_blocks.encoders.grid import GridTransformer as GridTransformer, GridViT as GridViT
from ssl_blocks.encoders.hub import (
    export_encoder as export_encoder,
    load_encoder as load_encoder,
    trace_features as trace_features,
    untrained as untrained,
)
from ssl_blocks.encoders.looking import attention_weights as attention_weights
from ssl_blocks.encoders.pooled import TimmPooled as TimmPooled
from ssl_blocks.encoders.postnorm import PostNormTransformer as PostNormTransformer
from ssl_blocks.encoders.protocol import (
    FeatureEncoder as FeatureEncoder,
    RegionEncoder as RegionEncoder,
    TokenEncoder as TokenEncoder,
)
from ssl_blocks.encoders.regions import (
    TimmRegions as TimmRegions,
    TokenRegions as TokenRegions,
    timm_regions as timm_regions,
)
from ssl_blocks.encoders.timm import TimmViT as TimmViT, timm_vit as timm_vit
from ssl_blocks.encoders.torch import TorchEncoder as TorchEncoder
from ssl_blocks.encoders.torchvision import TorchvisionViT as TorchvisionViT
from ssl_blocks.encoders.transformers import TransformersViT as TransformersViT
