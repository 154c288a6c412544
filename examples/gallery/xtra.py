"""XTRA-like: blocks of patches in raster order, each predicted from all before it.

Paper    Amrani et al.: "Sample- and Parameter-Efficient Auto-Regressive Image Models" (XTRA)
Idea     AIM patch by patch learns mostly local texture. Predict blocks of k x k patches at once under a block-causal
         mask: what follows is larger, and has to be guessed from content.
What     the pixels of each patch of the next block, normalised, by the squared error
Where    squares of 2x2 patches in raster order, all but the first
Who      a patch sees its own block and those before it
New      nothing
Command  python examples/gallery/xtra.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method

SIDE = 2


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SquarePartitioner(sides=(SIDE,)),
        serializer=sb.OrderedSerializer(),
        mask=sb.SegmentCausalMask(),
        # a patch is read off the one at its place in the block before
        reader=sb.parts.NextReader(encoder.dim, num_tokens=encoder.grid.num_tokens, step=SIDE**2),
        target=sb.PixelTarget(tokenizer, normalize=True),
    )


METHOD = Method(build)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
