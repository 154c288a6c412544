"""VICReg and MAE: views alike without collapse, and hidden patches, on one encoder.

Paper    Bardes et al.: "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning"; He et al.:
         "Masked Autoencoders Are Scalable Vision Learners"
Idea     Views of an image shall have one embedding, whose components vary over the batch and do not repeat each other:
         no negatives, no teacher. Beside it the hidden patches of the first view are filled in.
What     the other view's embedding, by the squared error; and the pixels of a patch, normalised
Where    whole views; and a random three quarters of the first one
Who      tokens of a view see each other; hidden patches are predicted from visible ones
New      nothing
Command  python examples/gallery/vicreg_mae.py
"""

from torch import nn

import ssl_blocks as sb
from examples.gallery.run import Method


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.WeightedSum:
    """Put the objective together."""
    dim = encoder.dim
    decoder = sb.MaskTokenDecoder(grid=encoder.grid, dim=dim, depth=1, num_heads=4)
    joint = sb.objectives.JointEmbedding(
        encoder=sb.encoders.TokenRegions(encoder, class_token=False),
        head=nn.Sequential(nn.Linear(dim, 4 * dim), nn.LayerNorm(4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim)),
        loss=sb.parts.vicreg,
    )
    mae = sb.mae(encoder=encoder, tokenizer=tokenizer, decoder=decoder)
    return sb.WeightedSum({"mae": mae, "vicreg": joint}, weights={"mae": 1.0, "vicreg": 0.02})


METHOD = Method(
    build,
    views=True,
)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
