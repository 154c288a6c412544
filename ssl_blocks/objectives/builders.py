"""Published methods as short assemblies of `SegmentPrediction`; whatever is not given here is a part like any other."""

from torch import nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.objectives.prediction import SegmentPrediction
from ssl_blocks.parts.decode import Decoder, SegmentDecoder
from ssl_blocks.parts.loss import Loss, predicted_l1, predicted_mse
from ssl_blocks.parts.mask import FullMask
from ssl_blocks.parts.partition import SegmentPartitioner, SubsetPartitioner, TokenPartitioner
from ssl_blocks.parts.query_stream import QueryStreamDecoder
from ssl_blocks.parts.read import DecoderReader, QueryReader
from ssl_blocks.parts.route import LastLayerRouter, LearnedSkipRouter, MatchedRouter, SkipMemoryRouter
from ssl_blocks.parts.serialize import OrderedSerializer, Serializer
from ssl_blocks.parts.target import PixelTarget, Target
from ssl_blocks.parts.tokenize import Tokenizer


@checked
def randsac(
    *,
    encoder: TokenEncoder,
    tokenizer: Tokenizer,
    partitioner: SegmentPartitioner,
    decoder: SegmentDecoder,
    router: SkipMemoryRouter | None = None,
    serializer: Serializer | None = None,
    target: Target | None = None,
    head: nn.Module | None = None,
    predict_first: bool = False,
) -> SegmentPrediction:
    """RandSAC: random segments, autoregressive, with learnable skips (Hua et al., Sec. 3).

    Args:
        encoder: any token encoder.
        tokenizer: cuts the images.
        partitioner: draws the segments, such as `SquarePartitioner` or `BlobPartitioner`.
        decoder: predicts at positions.
        router: ``None``: every decoder layer learns its own mixture of encoder layers.
        serializer: ``None``: random order.
        target: ``None``: the pixels of each patch, normalised.
        head: ``None``: one Linear.
        predict_first: also predict the first segment, from prefix tokens alone.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=32, patch_size=4, depth=2)
        >>> objective = randsac(
        ...     encoder=encoder,
        ...     tokenizer=sb.PatchTokenizer(image_size=32, patch_size=4),
        ...     partitioner=sb.SquarePartitioner(sides=(2, 4)),
        ...     decoder=sb.SegmentDecoder(grid=encoder.grid, dim=192, depth=1, num_heads=3),
        ... )
    """
    skips = LearnedSkipRouter(encoder_depth=encoder.depth, decoder_depth=decoder.depth) if router is None else router
    return SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=partitioner,
        serializer=serializer,
        reader=DecoderReader(skips, decoder),
        target=PixelTarget(tokenizer, normalize=True) if target is None else target,
        head=head,
        predict_first=predict_first,
    )


@checked
def mae(
    *,
    encoder: TokenEncoder,
    tokenizer: Tokenizer,
    decoder: Decoder,
    partitioner: SegmentPartitioner | None = None,
    router: SkipMemoryRouter | None = None,
    target: Target | None = None,
    loss: Loss = predicted_mse,
    head: nn.Module | None = None,
) -> SegmentPrediction:
    """MAE: encode a part of the patches, and predict the others (He et al., Sec. 3).

    Hidden patches are left out before anything is embedded. All encoded tokens see each other, the class token
    included.

    Args:
        encoder: any token encoder.
        tokenizer: cuts the images.
        decoder: predicts at the hidden positions; MAE's is `MaskTokenDecoder`.
        partitioner: id 0 is visible; ``None``: a random quarter is.
        router: ``None``: the decoder gets the normalised last states, once.
        target: ``None``: the pixels of each patch, normalised.
        loss: compares predictions with targets.
        head: ``None``: one Linear.

    Examples:
        >>> import torch
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=32, patch_size=4, depth=2, class_token=True)
        >>> objective = mae(
        ...     encoder=encoder,
        ...     tokenizer=sb.PatchTokenizer(image_size=32, patch_size=4),
        ...     decoder=sb.MaskTokenDecoder(grid=encoder.grid, dim=64, depth=2, num_heads=2, memory_dim=encoder.dim),
        ... )
        >>> objective(torch.rand(2, 3, 32, 32)).predictions.shape  # three quarters of 64 tokens
        torch.Size([2, 48, 48])
    """
    return SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=SubsetPartitioner(hidden=0.75) if partitioner is None else partitioner,
        serializer=OrderedSerializer(),
        mask=FullMask(),
        reader=DecoderReader(LastLayerRouter(decoder_depth=1) if router is None else router, decoder),
        target=PixelTarget(tokenizer, normalize=True) if target is None else target,
        loss=loss,
        head=head,
    )


@checked
def saim(
    *,
    encoder: TokenEncoder,
    tokenizer: Tokenizer,
    decoder: QueryStreamDecoder,
    target: Target | None = None,
    loss: Loss = predicted_mse,
    head: nn.Module | None = None,
) -> SegmentPrediction:
    """SAIM: tokens one by one in random order, predicted by a query stream (Qi et al.).

    With prefix tokens the first token is predicted, too.

    Args:
        encoder: any token encoder.
        tokenizer: cuts the images.
        decoder: the query stream, with blocks of its own or the encoder's (`QueryStreamDecoder.sharing`).
        target: ``None``: the pixels of each patch of the blurred image, normalised.
        loss: compares predictions with targets.
        head: ``None``: one Linear.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=32, patch_size=4, depth=2, class_token=True)
        >>> objective = saim(
        ...     encoder=encoder,
        ...     tokenizer=sb.PatchTokenizer(image_size=32, patch_size=4),
        ...     decoder=sb.QueryStreamDecoder.sharing(encoder, depth=2),
        ... )
    """
    return SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=TokenPartitioner(),
        reader=DecoderReader(MatchedRouter(encoder_depth=encoder.depth, decoder_depth=decoder.depth), decoder),
        target=PixelTarget(tokenizer, normalize=True, blur=(9, 1.0)) if target is None else target,
        loss=loss,
        head=head,
        predict_first=encoder.num_prefix > 0,
    )


@checked
def simmim(
    *,
    encoder: TokenEncoder,
    tokenizer: Tokenizer,
    partitioner: SegmentPartitioner | None = None,
    target: Target | None = None,
    loss: Loss = predicted_l1,
    head: nn.Module | None = None,
) -> SegmentPrediction:
    """SimMIM: mask tokens stand in the encoder for hidden patches, and a Linear predicts raw pixels by L1 (Xie et al.).

    Args:
        encoder: any token encoder.
        tokenizer: cuts the images.
        partitioner: id 0 is visible; ``None``: squares of two tokens, of which .6 are hidden.
        target: ``None``: raw pixels.
        loss: compares predictions with targets.
        head: ``None``: one Linear.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=32, patch_size=4, depth=2)
        >>> objective = simmim(encoder=encoder, tokenizer=sb.PatchTokenizer(image_size=32, patch_size=4))
    """
    return SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=SubsetPartitioner(hidden=0.6, side=2) if partitioner is None else partitioner,
        serializer=OrderedSerializer(),
        mask=FullMask(feedback=True),
        reader=QueryReader(encoder.dim),
        target=PixelTarget(tokenizer) if target is None else target,
        loss=loss,
        head=head,
    )
