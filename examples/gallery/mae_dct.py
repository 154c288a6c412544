"""MAE in frequencies: low frequencies of hidden patches.

Paper    He et al.: "Masked Autoencoders Are Scalable Vision Learners"; Liu et al.: "The Devil is in the Frequency:
         Geminated Gestalt Autoencoder for Self-Supervised Visual Pre-Training", for frequencies as a target
Idea     Fine detail of a hidden patch cannot be known. Predict the low frequencies of its cosine transform alone.
What     the lowest coefficients of a patch's two-dimensional DCT, by the squared error
Where    a random three quarters of the patches
Who      given tokens see each other; in the decoder all see all
New      nothing
Command  python examples/gallery/mae_dct.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    return sb.mae(
        encoder=encoder,
        tokenizer=tokenizer,
        decoder=sb.MaskTokenDecoder(grid=encoder.grid, dim=encoder.dim, depth=2, num_heads=4),
        target=sb.parts.DCTTarget(tokenizer, lowest=encoder.patch[0]),
    )


METHOD = Method(build, class_token=True)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
