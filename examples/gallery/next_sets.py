"""Next-set prediction: random sets of tokens that grow, each predicted at once from those before it.

Paper    Li et al.: "Autoregressive Image Generation without Vector Quantization" (MAR), whose sets follow MaskGIT's
         cosine: few tokens first, many last
Idea     Between one token at a time and all hidden ones at once: sets in random order, whose sizes grow.
What     the pixels of a token, normalised, by the squared error
Where    random sets of 1/16, 1/8, 1/4 and half of the tokens, behind a first one that is given
Who      content sees its own set and those before it; queries of a set see those before it and each other
New      nothing
Command  python examples/gallery/next_sets.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SubsetPartitioner(hidden=(1 / 16, 1 / 8, 1 / 4, 1 / 2)),
        serializer=sb.OrderedSerializer(),  # subsets are random; their order is that of their sizes
        mask=sb.SegmentCausalMask(),
        reader=sb.QueryReader(encoder.dim),
        target=sb.PixelTarget(tokenizer, normalize=True),
    )


METHOD = Method(build)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
