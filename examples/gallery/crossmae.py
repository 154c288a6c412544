"""CrossMAE: hidden patches ask the visible ones by cross-attention, each by itself.

Paper    Fu et al.: "Rethinking Patch Dependence for Masked Autoencoders"
Idea     MAE's hidden patches look at each other in the decoder, and need not: queries attend to visible tokens alone,
         every decoder layer to its own weighted sum of all encoder layers. So any share of them can be predicted.
What     the pixels of a patch, normalised, by the squared error
Where    a random quarter of the patches; another quarter is given, and half is neither
Who      given tokens see each other; a query, mask token plus position, sees what is given and no other query
New      nothing: the decoder without self-attention, the router with its norms and partial prediction are options
Command  python examples/gallery/crossmae.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method

DEPTH = 2


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    encoder.norm.requires_grad_(False)  # the router has norms of its own
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SubsetPartitioner(hidden=(0.25, 0.5)),  # predicted, and neither given nor predicted
        serializer=sb.OrderedSerializer(),
        num_predicted=1,
        mask=sb.FullMask(),
        reader=sb.DecoderReader(
            sb.parts.WeightedSkipRouter(encoder_depth=encoder.depth, decoder_depth=DEPTH, dim=encoder.dim),
            sb.SegmentDecoder(
                grid=encoder.grid,
                dim=encoder.dim,
                depth=DEPTH,
                num_heads=4,
                self_attention=False,
                mask_token=True,
            ),
        ),
        target=sb.PixelTarget(tokenizer, normalize=True),
    )


METHOD = Method(build, class_token=True)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
