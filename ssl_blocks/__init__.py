"""Composable parts for self-supervised pretraining objectives of vision transformers."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily
from ssl_blocks.program import VERSION

if TYPE_CHECKING:
    from ssl_blocks import (
        data as data,
        encoders as encoders,
        objectives as objectives,
        parts as parts,
        values as values,
    )
    from ssl_blocks.grid import Grid as Grid
    from ssl_blocks.objectives import (
        Objective as Objective,
        PatchPuzzle as PatchPuzzle,
        SegmentPrediction as SegmentPrediction,
        TeacherSchedule as TeacherSchedule,
        ViewRegionDistillation as ViewRegionDistillation,
        WeightedSum as WeightedSum,
        dino_head as dino_head,
        mae as mae,
        randsac as randsac,
        saim as saim,
        simmim as simmim,
    )
    from ssl_blocks.parts.average import MovingAverage as MovingAverage
    from ssl_blocks.parts.decode import MaskTokenDecoder as MaskTokenDecoder, SegmentDecoder as SegmentDecoder
    from ssl_blocks.parts.loss import (
        predicted_cosine as predicted_cosine,
        predicted_cross_entropy as predicted_cross_entropy,
        predicted_l1 as predicted_l1,
        predicted_mse as predicted_mse,
        predicted_smooth_l1 as predicted_smooth_l1,
    )
    from ssl_blocks.parts.mask import (
        FullMask as FullMask,
        PrefixCausalMask as PrefixCausalMask,
        SegmentCausalMask as SegmentCausalMask,
    )
    from ssl_blocks.parts.partition import (
        BlobPartitioner as BlobPartitioner,
        BlockSubsetPartitioner as BlockSubsetPartitioner,
        GridSubsetPartitioner as GridSubsetPartitioner,
        ShuffledPartitioner as ShuffledPartitioner,
        SquarePartitioner as SquarePartitioner,
        SubsetPartitioner as SubsetPartitioner,
        TokenPartitioner as TokenPartitioner,
        TubePartitioner as TubePartitioner,
    )
    from ssl_blocks.parts.query_stream import QueryStreamDecoder as QueryStreamDecoder
    from ssl_blocks.parts.read import DecoderReader as DecoderReader, QueryReader as QueryReader
    from ssl_blocks.parts.route import (
        LastLayerRouter as LastLayerRouter,
        LearnedSkipRouter as LearnedSkipRouter,
        MatchedRouter as MatchedRouter,
    )
    from ssl_blocks.parts.serialize import OrderedSerializer as OrderedSerializer, RandomSerializer as RandomSerializer
    from ssl_blocks.parts.target import (
        EncoderTarget as EncoderTarget,
        PixelTarget as PixelTarget,
        PositionTarget as PositionTarget,
    )
    from ssl_blocks.parts.tokenize import ChannelTokenizer as ChannelTokenizer, PatchTokenizer as PatchTokenizer
    from ssl_blocks.values import (
        AttentionMasks as AttentionMasks,
        Encoded as Encoded,
        ObjectiveOutput as ObjectiveOutput,
        Progress as Progress,
        Segments as Segments,
        Serialization as Serialization,
        Views as Views,
    )
else:
    __getattr__, __dir__ = lazily(__name__, __file__)

__version__ = VERSION
