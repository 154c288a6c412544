"""SimMIM: mask tokens in the encoder, raw pixels of hidden squares by L1.

Paper    Xie et al.: "SimMIM: A Simple Framework for Masked Image Modeling"
Idea     Hide squares of the image, put a mask token for each hidden patch into the encoder, and regress the pixels
         with one linear layer: no decoder, no tokenizer of a stage before.
What     the raw pixels of a patch, by L1
Where    random squares of two tokens, 60 % of the image
Who      all tokens see each other; a hidden one is a mask token with its position
New      nothing: four parts, which the library's own `simmim` names, too
Command  python examples/gallery/simmim.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SubsetPartitioner(hidden=0.6, side=2),
        serializer=sb.OrderedSerializer(),  # what is visible comes first
        mask=sb.FullMask(feedback=True),  # visible tokens see mask tokens, too
        reader=sb.QueryReader(encoder.dim),
        target=sb.PixelTarget(tokenizer),
        loss=sb.predicted_l1,
    )


METHOD = Method(build)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
