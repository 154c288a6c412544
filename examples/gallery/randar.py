"""RandAR-like: tokens in random order, each told in advance where the next one lies.

Paper    Pang et al.: "RandAR: Decoder-only Autoregressive Visual Generation in Random Orders"
Idea     A decoder-only model reads tokens in any order, if a position instruction in front of each says which one is
         asked for. The instruction is a query beside the content, which nothing else sees.
What     the pixels of a token, normalised, by the squared error; RandAR's are codes of a tokenizer
Where    all tokens, in random order; the first follows a class token
Who      content sees itself and what was read before it; an instruction sees what was read before its token, and itself
New      nothing
Command  python examples/gallery/randar.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.TokenPartitioner(),
        serializer=sb.RandomSerializer(),
        mask=sb.SegmentCausalMask(),
        reader=sb.QueryReader(encoder.dim),
        target=sb.PixelTarget(tokenizer, normalize=True),
        predict_first=True,
    )


METHOD = Method(build, class_token=True)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
