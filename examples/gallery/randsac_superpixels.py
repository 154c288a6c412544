"""RandSAC over superpixels: segments that follow the picture.

Paper    Hua et al.: "Self-supervision through Random Segments with Autoregressive Coding (RandSAC)"; Achanta et al.:
         "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods"
Idea     RandSAC's segments are squares or random blobs. Here they are superpixels of the image itself: clusters of
         colour and place, read in random order, each predicted from those before it.
What     the pixels of a patch, normalised, by the squared error
Where    all superpixels but the first, in random order
Who      a token sees its own segment and those before it; a prediction sees those before it
New      nothing
Command  python examples/gallery/randsac_superpixels.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    return sb.randsac(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.parts.SuperpixelPartitioner(shape=(3, 3)),
        decoder=sb.SegmentDecoder(grid=encoder.grid, dim=encoder.dim, depth=2, num_heads=4),
    )


METHOD = Method(build)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
