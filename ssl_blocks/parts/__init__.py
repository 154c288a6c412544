"""Composable parts: each answers one question about tokens and knows no neighbour."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.parts.attention import explicit_attention
    from ssl_blocks.parts.average import MovingAverage, cosine_momentum
    from ssl_blocks.parts.blocks import BlockSampler, RectangleSampler, TargetBlocks
    from ssl_blocks.parts.codes import ClusterTarget, kmeans
    from ssl_blocks.parts.decode import Decoder, MaskTokenDecoder, SegmentDecoder
    from ssl_blocks.parts.embedding_loss import koleo, nt_xent, sigreg, vicreg
    from ssl_blocks.parts.follow import NextReader
    from ssl_blocks.parts.frequencies import DCTTarget
    from ssl_blocks.parts.gather import gathered
    from ssl_blocks.parts.hog import HOGTarget
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
        TubePartitioner,
    )
    from ssl_blocks.parts.position import PositionTable, resample_positions, sincos_table
    from ssl_blocks.parts.query_block import QueryBlock
    from ssl_blocks.parts.query_stream import QueryStreamDecoder
    from ssl_blocks.parts.read import DecoderReader, QueryReader, Reader
    from ssl_blocks.parts.region_loss import Pairing, match_regions, paired_cross_entropy, view_cross_entropy
    from ssl_blocks.parts.route import (
        LastLayerRouter,
        LearnedSkipRouter,
        MatchedRouter,
        SkipMemoryRouter,
        WeightedSkipRouter,
    )
    from ssl_blocks.parts.serialize import OrderedSerializer, RandomSerializer, Serializer
    from ssl_blocks.parts.superpixels import SuperpixelPartitioner, slic
    from ssl_blocks.parts.target import EncoderTarget, PictureTarget, PixelTarget, PositionTarget, Target
    from ssl_blocks.parts.tokenize import ChannelTokenizer, PatchTokenizer, StoredTokenizer, Tokenizer
else:
    __getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "BlobPartitioner",
    "BlockSampler",
    "BlockSubsetPartitioner",
    "ChannelTokenizer",
    "ClusterTarget",
    "DCTTarget",
    "Decoder",
    "DecoderReader",
    "EncoderTarget",
    "FullMask",
    "GridSubsetPartitioner",
    "HOGTarget",
    "LastLayerRouter",
    "LearnedSkipRouter",
    "Loss",
    "MaskBuilder",
    "MaskTokenDecoder",
    "MatchedRouter",
    "MovingAverage",
    "NextReader",
    "OrderedSerializer",
    "Pairing",
    "PatchTokenizer",
    "PictureTarget",
    "PixelTarget",
    "PositionTable",
    "PositionTarget",
    "PrefixCausalMask",
    "QueryBlock",
    "QueryReader",
    "QueryStreamDecoder",
    "RandomSerializer",
    "Reader",
    "RectangleSampler",
    "SegmentCausalMask",
    "SegmentDecoder",
    "SegmentPartitioner",
    "Serializer",
    "ShuffledPartitioner",
    "SkipMemoryRouter",
    "SquarePartitioner",
    "StoredTokenizer",
    "SubsetPartitioner",
    "SuperpixelPartitioner",
    "Target",
    "TargetBlocks",
    "TokenPartitioner",
    "Tokenizer",
    "TubePartitioner",
    "WeightedSkipRouter",
    "cosine_momentum",
    "explicit_attention",
    "gathered",
    "kmeans",
    "koleo",
    "match_regions",
    "nt_xent",
    "paired_cross_entropy",
    "predicted_cosine",
    "predicted_cross_entropy",
    "predicted_l1",
    "predicted_mse",
    "predicted_smooth_l1",
    "resample_positions",
    "sigreg",
    "sincos_table",
    "slic",
    "vicreg",
    "view_cross_entropy",
]
