"""Composable parts for self-supervised pretraining objectives of vision transformers."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily
from ssl_blocks.program import VERSION

if TYPE_CHECKING:
    from ssl_blocks import data, encoders, objectives, parts, values
    from ssl_blocks.grid import Grid
    from ssl_blocks.objectives import (
        Objective,
        PatchPuzzle,
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
    from ssl_blocks.parts.average import MovingAverage
    from ssl_blocks.parts.decode import MaskTokenDecoder, SegmentDecoder
    from ssl_blocks.parts.loss import (
        predicted_cosine,
        predicted_cross_entropy,
        predicted_l1,
        predicted_mse,
        predicted_smooth_l1,
    )
    from ssl_blocks.parts.mask import FullMask, PrefixCausalMask, SegmentCausalMask
    from ssl_blocks.parts.partition import (
        BlobPartitioner,
        BlockSubsetPartitioner,
        GridSubsetPartitioner,
        ShuffledPartitioner,
        SquarePartitioner,
        SubsetPartitioner,
        TokenPartitioner,
        TubePartitioner,
    )
    from ssl_blocks.parts.query_stream import QueryStreamDecoder
    from ssl_blocks.parts.read import DecoderReader, QueryReader
    from ssl_blocks.parts.route import LastLayerRouter, LearnedSkipRouter, MatchedRouter
    from ssl_blocks.parts.serialize import OrderedSerializer, RandomSerializer
    from ssl_blocks.parts.target import EncoderTarget, PixelTarget, PositionTarget
    from ssl_blocks.parts.tokenize import ChannelTokenizer, PatchTokenizer
    from ssl_blocks.values import AttentionMasks, Encoded, ObjectiveOutput, Progress, Segments, Serialization, Views
else:
    __getattr__, __dir__ = lazily(__name__, __file__)

__version__ = VERSION

__all__ = [
    "AttentionMasks",
    "BlobPartitioner",
    "BlockSubsetPartitioner",
    "ChannelTokenizer",
    "DecoderReader",
    "Encoded",
    "EncoderTarget",
    "FullMask",
    "Grid",
    "GridSubsetPartitioner",
    "LastLayerRouter",
    "LearnedSkipRouter",
    "MaskTokenDecoder",
    "MatchedRouter",
    "MovingAverage",
    "Objective",
    "ObjectiveOutput",
    "OrderedSerializer",
    "PatchPuzzle",
    "PatchTokenizer",
    "PixelTarget",
    "PositionTarget",
    "PrefixCausalMask",
    "Progress",
    "QueryReader",
    "QueryStreamDecoder",
    "RandomSerializer",
    "SegmentCausalMask",
    "SegmentDecoder",
    "SegmentPrediction",
    "Segments",
    "Serialization",
    "ShuffledPartitioner",
    "SquarePartitioner",
    "SubsetPartitioner",
    "TeacherSchedule",
    "TokenPartitioner",
    "TubePartitioner",
    "ViewRegionDistillation",
    "Views",
    "WeightedSum",
    "data",
    "dino_head",
    "encoders",
    "mae",
    "objectives",
    "parts",
    "predicted_cosine",
    "predicted_cross_entropy",
    "predicted_l1",
    "predicted_mse",
    "predicted_smooth_l1",
    "randsac",
    "saim",
    "simmim",
    "values",
]
