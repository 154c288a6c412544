"""Composable parts for self-supervised pretraining objectives of vision transformers."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks import data, encoders, objectives, parts, values
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
        Objective,
        PatchPuzzle,
        PuzzleDraw,
        SegmentPrediction,
        TeacherSchedule,
        ViewRegionDistillation,
        WeightedSum,
        dino_head,
        mae,
        randsac,
        saim,
        simmim,
    )
    from ssl_blocks.parts.attention import explicit_attention
    from ssl_blocks.parts.average import MovingAverage, cosine_momentum
    from ssl_blocks.parts.decode import Decoder, MaskTokenDecoder, SegmentDecoder
    from ssl_blocks.parts.gather import gathered
    from ssl_blocks.parts.loss import (
        Loss,
        predicted_cosine,
        predicted_cross_entropy,
        predicted_l1,
        predicted_mse,
        predicted_smooth_l1,
    )
    from ssl_blocks.parts.mask import FullMask, MaskBuilder, PrefixCausalMask, SegmentCausalMask
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
    from ssl_blocks.parts.query_block import QueryBlock
    from ssl_blocks.parts.query_stream import QueryStreamDecoder
    from ssl_blocks.parts.read import DecoderReader, QueryReader, Reader
    from ssl_blocks.parts.region_loss import match_regions, paired_cross_entropy
    from ssl_blocks.parts.route import LastLayerRouter, LearnedSkipRouter, MatchedRouter, SkipMemoryRouter
    from ssl_blocks.parts.serialize import OrderedSerializer, RandomSerializer, Serializer
    from ssl_blocks.parts.target import EncoderTarget, PixelTarget, PositionTarget, Target
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
    "DecoderReader",
    "Encoded",
    "EncoderTarget",
    "FeatureEncoder",
    "FullMask",
    "Grid",
    "GridSubsetPartitioner",
    "LastLayerRouter",
    "LearnedSkipRouter",
    "Loss",
    "MaskBuilder",
    "MaskTokenDecoder",
    "MatchedRouter",
    "MovingAverage",
    "Objective",
    "ObjectiveOutput",
    "OrderedSerializer",
    "PatchPuzzle",
    "PatchTokenizer",
    "PixelTarget",
    "PositionTable",
    "PositionTarget",
    "PostNormTransformer",
    "PrefixCausalMask",
    "Progress",
    "PuzzleDraw",
    "QueryBlock",
    "QueryReader",
    "QueryStreamDecoder",
    "RandomSerializer",
    "Reader",
    "RegionEncoder",
    "Regions",
    "SegmentCausalMask",
    "SegmentDecoder",
    "SegmentPartitioner",
    "SegmentPrediction",
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
    "ViewRegionDistillation",
    "Views",
    "WeightedSum",
    "cosine_momentum",
    "data",
    "dino_head",
    "encoders",
    "explicit_attention",
    "gather_tokens",
    "gathered",
    "mae",
    "match_regions",
    "objectives",
    "paired_cross_entropy",
    "parts",
    "predicted_cosine",
    "predicted_cross_entropy",
    "predicted_l1",
    "predicted_mse",
    "predicted_smooth_l1",
    "randsac",
    "saim",
    "simmim",
    "sincos_table",
    "values",
]
