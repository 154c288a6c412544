"""xAR-like: cells of neighbouring tokens, predicted cell by cell from noisy or clean ones before.

Paper    Ren et al.: "Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation" (xAR)
Idea     The unit of prediction need not be a token: a cell of k x k neighbours is predicted at once, from the cells
         before it. xAR also denoises what it sees; here cells are seen as they are.
What     the pixels of a token, normalised, by the squared error
Where    cells of 2x2 tokens in random order, all but the first
Who      content sees its own cell and those before it; queries of a cell see those before it and each other
New      nothing
Command  python examples/gallery/xar.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SquarePartitioner(sides=(2,)),
        serializer=sb.RandomSerializer(),
        mask=sb.SegmentCausalMask(),
        reader=sb.QueryReader(encoder.dim),
        target=sb.PixelTarget(tokenizer, normalize=True),
    )


METHOD = Method(build)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
