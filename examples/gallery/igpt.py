"""iGPT: pixels in raster order, each a class of colours, predicted from all before it.

Paper    Chen et al.: "Generative Pretraining from Pixels"
Idea     Shrink the image, give every pixel one colour of a small palette, and train a language model on the sequence.
What     the next pixel's colour of a palette of 32, found by k-means, by cross-entropy
Where    all pixels of an 8x8 image, in raster order; the first follows a start token
Who      every token sees what comes before it
New      nothing; tokens that enter are colours as they are, not entries of the palette
Command  python examples/gallery/igpt.py
"""

from torch import Tensor

import ssl_blocks as sb
from examples.gallery.run import Method

NUM_COLORS = 32


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer, images: Tensor) -> sb.SegmentPrediction:
    """Put the objective together, with a palette of some training images."""
    pixels = sb.PixelTarget(tokenizer)
    palette = sb.parts.kmeans(pixels(images).flatten(0, 1), NUM_COLORS)
    return sb.SegmentPrediction(
        encoder=encoder,  # its class token is the start
        tokenizer=tokenizer,
        partitioner=sb.TokenPartitioner(),
        serializer=sb.OrderedSerializer(),
        mask=sb.SegmentCausalMask(),
        reader=sb.parts.NextReader(encoder.dim, num_tokens=encoder.grid.num_tokens),
        target=sb.parts.ClusterTarget(pixels, palette),
        loss=sb.predicted_cross_entropy,
        predict_first=True,
    )


METHOD = Method(build, class_token=True, looks=True, pixel_tokens=True)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
