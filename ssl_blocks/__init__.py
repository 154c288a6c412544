"""Composable parts for self-supervised pretraining objectives of vision transformers."""

from ssl_blocks import encoders
from ssl_blocks.attention import explicit_attention
from ssl_blocks.decoders import Decoder, MaskTokenDecoder, SegmentDecoder
from ssl_blocks.encoders import (
    FeatureEncoder,
    RegionEncoder,
    TimmEva,
    TimmViT,
    TokenEncoder,
    TorchEncoder,
    TorchvisionViT,
    TransformersViT,
)
from ssl_blocks.losses import predicted_mse
from ssl_blocks.masks import MaskBuilder, SegmentCausalMask
from ssl_blocks.objectives import MaskedAutoencoding, Objective, ObjectiveModule, SegmentAutoregression
from ssl_blocks.partitioners import (
    BlobPartitioner,
    BlockSubsetPartitioner,
    GridSubsetPartitioner,
    SegmentPartitioner,
    ShuffledPartitioner,
    SquarePartitioner,
    SubsetPartitioner,
    TokenPartitioner,
)
from ssl_blocks.positions import PositionTable, sincos_table
from ssl_blocks.routers import LastLayerRouter, LearnedSkipRouter, SkipMemoryRouter
from ssl_blocks.serializers import OrderedSerializer, RandomSerializer, Serializer
from ssl_blocks.targets import PixelTarget, Target
from ssl_blocks.tokenizers import PatchTokenizer, Tokenizer
from ssl_blocks.values import (
    AttentionMasks,
    Encoded,
    Grid,
    ObjectiveOutput,
    Progress,
    Regions,
    Segments,
    Serialization,
    Views,
    gather_tokens,
)

__version__ = "0.1.0"

__all__ = [
    "AttentionMasks",
    "BlobPartitioner",
    "BlockSubsetPartitioner",
    "Decoder",
    "Encoded",
    "FeatureEncoder",
    "Grid",
    "GridSubsetPartitioner",
    "LastLayerRouter",
    "LearnedSkipRouter",
    "MaskBuilder",
    "MaskTokenDecoder",
    "MaskedAutoencoding",
    "Objective",
    "ObjectiveModule",
    "ObjectiveOutput",
    "OrderedSerializer",
    "PatchTokenizer",
    "PixelTarget",
    "PositionTable",
    "Progress",
    "RandomSerializer",
    "RegionEncoder",
    "Regions",
    "SegmentAutoregression",
    "SegmentCausalMask",
    "SegmentDecoder",
    "SegmentPartitioner",
    "Segments",
    "Serialization",
    "Serializer",
    "ShuffledPartitioner",
    "SkipMemoryRouter",
    "SquarePartitioner",
    "SubsetPartitioner",
    "Target",
    "TimmEva",
    "TimmViT",
    "TokenEncoder",
    "TokenPartitioner",
    "Tokenizer",
    "TorchEncoder",
    "TorchvisionViT",
    "TransformersViT",
    "Views",
    "encoders",
    "explicit_attention",
    "gather_tokens",
    "predicted_mse",
    "sincos_table",
]
