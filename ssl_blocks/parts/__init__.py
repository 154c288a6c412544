"""Composable parts: each answers one question about tokens and knows no neighbour."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.parts.attention import explicit_attention as explicit_attention
    from ssl_blocks.parts.average import MovingAverage as MovingAverage, cosine_momentum as cosine_momentum
    from ssl_blocks.parts.blocks import (
        BlockSampler as BlockSampler,
        RectangleSampler as RectangleSampler,
        TargetBlocks as TargetBlocks,
    )
    from ssl_blocks.parts.codes import ClusterTarget as ClusterTarget, kmeans as kmeans
    from ssl_blocks.parts.decode import (
        Decoder as Decoder,
        MaskTokenDecoder as MaskTokenDecoder,
        SegmentDecoder as SegmentDecoder,
    )
    from ssl_blocks.parts.embedding_loss import koleo as koleo, nt_xent as nt_xent, sigreg as sigreg, vicreg as vicreg
    from ssl_blocks.parts.follow import NextReader as NextReader
    from ssl_blocks.parts.frequencies import DCTTarget as DCTTarget
    from ssl_blocks.parts.gather import gathered as gathered
    from ssl_blocks.parts.hog import HOGTarget as HOGTarget
    from ssl_blocks.parts.loss import (
        Loss as Loss,
        predicted_cosine as predicted_cosine,
        predicted_cross_entropy as predicted_cross_entropy,
        predicted_l1 as predicted_l1,
        predicted_mse as predicted_mse,
        predicted_smooth_l1 as predicted_smooth_l1,
    )
    from ssl_blocks.parts.mask import (
        FullMask as FullMask,
        MaskBuilder as MaskBuilder,
        PrefixCausalMask as PrefixCausalMask,
        SegmentCausalMask as SegmentCausalMask,
    )
    from ssl_blocks.parts.partition import (
        BlobPartitioner as BlobPartitioner,
        BlockSubsetPartitioner as BlockSubsetPartitioner,
        GridSubsetPartitioner as GridSubsetPartitioner,
        SegmentPartitioner as SegmentPartitioner,
        ShuffledPartitioner as ShuffledPartitioner,
        SquarePartitioner as SquarePartitioner,
        SubsetPartitioner as SubsetPartitioner,
        TokenPartitioner as TokenPartitioner,
        TubePartitioner as TubePartitioner,
    )
    from ssl_blocks.parts.position import (
        PositionTable as PositionTable,
        resample_positions as resample_positions,
        sincos_table as sincos_table,
    )
    from ssl_blocks.parts.query_block import QueryBlock as QueryBlock
    from ssl_blocks.parts.query_stream import QueryStreamDecoder as QueryStreamDecoder
    from ssl_blocks.parts.read import DecoderReader as DecoderReader, QueryReader as QueryReader, Reader as Reader
    from ssl_blocks.parts.region_loss import (
        Pairing as Pairing,
        match_regions as match_regions,
        paired_cross_entropy as paired_cross_entropy,
        view_cross_entropy as view_cross_entropy,
    )
    from ssl_blocks.parts.route import (
        LastLayerRouter as LastLayerRouter,
        LearnedSkipRouter as LearnedSkipRouter,
        MatchedRouter as MatchedRouter,
        SkipMemoryRouter as SkipMemoryRouter,
        WeightedSkipRouter as WeightedSkipRouter,
    )
    from ssl_blocks.parts.serialize import (
        OrderedSerializer as OrderedSerializer,
        RandomSerializer as RandomSerializer,
        Serializer as Serializer,
    )
    from ssl_blocks.parts.superpixels import SuperpixelPartitioner as SuperpixelPartitioner, slic as slic
    from ssl_blocks.parts.target import (
        EncoderTarget as EncoderTarget,
        PictureTarget as PictureTarget,
        PixelTarget as PixelTarget,
        PositionTarget as PositionTarget,
        Target as Target,
    )
    from ssl_blocks.parts.tokenize import (
        ChannelTokenizer as ChannelTokenizer,
        PatchTokenizer as PatchTokenizer,
        StoredTokenizer as StoredTokenizer,
        Tokenizer as Tokenizer,
    )
else:
    __getattr__, __dir__ = lazily(__name__, __file__)
