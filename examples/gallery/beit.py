"""BEiT-like: which cluster of patches a hidden patch belongs to.

Paper    Bao et al.: "BEiT: BERT Pre-Training of Image Transformers"
Idea     Give every patch a discrete code, hide blocks, and classify the hidden patches. BEiT's codes are those of a
         discrete VAE; here they are k-means clusters of patches of the training images.
What     the cluster of a patch, by cross-entropy
Where    rectangular blocks, 40 % of the image
Who      all tokens see each other; a hidden one is a mask token with its position
New      nothing; the codebook is made of training images, before the objective is
Command  python examples/gallery/beit.py
"""

from torch import Tensor

import ssl_blocks as sb
from examples.gallery.run import Method

NUM_CODES = 128


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer, images: Tensor) -> sb.SegmentPrediction:
    """Put the objective together, with a codebook of some training images."""
    pixels = sb.PixelTarget(tokenizer)
    codebook = sb.parts.kmeans(pixels(images).flatten(0, 1), NUM_CODES)
    return sb.simmim(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.BlockSubsetPartitioner(hidden=0.4),
        target=sb.parts.ClusterTarget(pixels, codebook),
        loss=sb.predicted_cross_entropy,
    )


METHOD = Method(build, looks=True)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
