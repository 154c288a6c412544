"""SimCLR and MAE: views told from other images, and hidden patches, on one encoder.

Paper    Chen et al.: "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR); He et al.:
         "Masked Autoencoders Are Scalable Vision Learners"
Idea     One encoder, two objectives: views of an image shall be told from views of other images, and the hidden patches
         of the first view be filled in. The sum of both losses trains the encoder.
What     which embedding belongs to the same image, by cross-entropy; and the pixels of a patch, normalised
Where    whole views; and a random three quarters of the first one
Who      tokens of a view see each other; hidden patches are predicted from visible ones
New      nothing
Command  python examples/gallery/simclr_mae.py
"""

from functools import partial

from torch import nn

import ssl_blocks as sb
from examples.gallery.run import Method


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.WeightedSum:
    """Put the objective together."""
    dim = encoder.dim
    decoder = sb.MaskTokenDecoder(grid=encoder.grid, dim=dim, depth=1, num_heads=4)
    simclr = sb.objectives.JointEmbedding(
        encoder=sb.encoders.TokenRegions(encoder, class_token=False),
        head=nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, 128)),
        loss=partial(sb.parts.nt_xent, temperature=0.2),
    )
    mae = sb.mae(encoder=encoder, tokenizer=tokenizer, decoder=decoder)
    return sb.WeightedSum({"mae": mae, "simclr": simclr}, weights={"mae": 1.0, "simclr": 0.2})


METHOD = Method(
    build,
    views=True,
)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
