"""Composable parts for self-supervised pretraining objectives of vision transformers."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks import data, encoders
    from ssl_blocks.encoders import (
        FeatureEncoder,
        PostNormTransformer,
        RegionEncoder,
        TimmEva,
        TimmRegions,
        TimmViT,
        TokenEncoder,
        TokenRegions,
        TorchEncoder,
        TorchvisionViT,
        TransformersViT,
    )
    from ssl_blocks.objectives import (
        MaskedAutoencoding,
        Objective,
        ObjectiveModule,
        PatchPuzzle,
        PuzzleDraw,
        SegmentAutoregression,
        TeacherSchedule,
        TwoStreamAutoregression,
        ViewRegionDistillation,
        WeightedSum,
        dino_head,
    )
    from ssl_blocks.parts.attention import explicit_attention
    from ssl_blocks.parts.decode import Decoder, MaskTokenDecoder, SegmentDecoder
    from ssl_blocks.parts.loss import predicted_cross_entropy, predicted_mse
    from ssl_blocks.parts.mask import MaskBuilder, SegmentCausalMask
    from ssl_blocks.parts.partition import (
        BlobPartitioner,
        BlockSubsetPartitioner,
        GridSubsetPartitioner,
        SegmentPartitioner,
        ShuffledPartitioner,
        SquarePartitioner,
        SubsetPartitioner,
        TokenPartitioner,
    )
    from ssl_blocks.parts.position import PositionTable, sincos_table
    from ssl_blocks.parts.query_stream import QueryBlock, QueryStreamDecoder
    from ssl_blocks.parts.region_loss import match_regions, paired_cross_entropy
    from ssl_blocks.parts.route import LastLayerRouter, LearnedSkipRouter, MatchedRouter, SkipMemoryRouter
    from ssl_blocks.parts.serialize import OrderedSerializer, RandomSerializer, Serializer
    from ssl_blocks.parts.target import PixelTarget, PositionTarget, Target
    from ssl_blocks.parts.tokenize import PatchTokenizer, Tokenizer
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
else:
    __getattr__, __dir__ = lazily(__name__, __file__)

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
    "MatchedRouter",
    "Objective",
    "ObjectiveModule",
    "ObjectiveOutput",
    "OrderedSerializer",
    "PatchPuzzle",
    "PatchTokenizer",
    "PixelTarget",
    "PositionTable",
    "PositionTarget",
    "PostNormTransformer",
    "Progress",
    "PuzzleDraw",
    "QueryBlock",
    "QueryStreamDecoder",
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
    "TeacherSchedule",
    "TimmEva",
    "TimmRegions",
    "TimmViT",
    "TokenEncoder",
    "TokenPartitioner",
    "TokenRegions",
    "Tokenizer",
    "TorchEncoder",
    "TorchvisionViT",
    "TransformersViT",
    "TwoStreamAutoregression",
    "ViewRegionDistillation",
    "Views",
    "WeightedSum",
    "data",
    "dino_head",
    "encoders",
    "explicit_attention",
    "gather_tokens",
    "match_regions",
    "paired_cross_entropy",
    "predicted_cross_entropy",
    "predicted_mse",
    "sincos_table",
]
