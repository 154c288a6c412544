"""MaskFeat: histograms of oriented gradients of hidden patches.

Paper    Wei et al.: "Masked Feature Prediction for Self-Supervised Visual Pre-Training"
Idea     Predict a hand-made feature instead of pixels: how edges run in a patch, brought to length 1 cell by cell, so
         that neither brightness nor contrast need be guessed.
What     HOG features of a patch: 9 directions in each cell and channel, by the squared error
Where    rectangular blocks, 40 % of the image
Who      all tokens see each other; a hidden one is a mask token with its position
New      nothing
Command  python examples/gallery/maskfeat.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    return sb.simmim(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.BlockSubsetPartitioner(hidden=0.4),
        target=sb.parts.HOGTarget(tokenizer, bins=9),
        loss=sb.predicted_mse,
    )


METHOD = Method(build)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
