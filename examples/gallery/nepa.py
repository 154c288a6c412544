"""NEPA-like: the embedding of the next patch.

Paper    Xu et al.: "Next-Embedding Prediction Makes Strong Vision Learners" (NEPA)
Idea     Neither pixels nor codes nor a teacher: the output at a patch shall point where the encoder's own embedding of
         the next patch points, and no gradient flows through that one.
What     the patch embedding of the next patch, by one minus the cosine
Where    all patches but the first, in raster order
Who      every token sees what comes before it
New      a target: the encoder's embedding, without gradient
Command  python examples/gallery/nepa.py
"""

import torch
from torch import Tensor, nn

import ssl_blocks as sb
from examples.gallery.run import Method


class EmbeddingTarget:
    """What the encoder's patch embedding makes of every patch."""

    def __init__(self, encoder: sb.encoders.TimmViT) -> None:
        self.encoder, self.dim = encoder, encoder.dim

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return ``[B, N, D]``."""
        return self.encoder.embed(images)


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.TokenPartitioner(),
        serializer=sb.OrderedSerializer(),
        mask=sb.SegmentCausalMask(),
        reader=sb.parts.NextReader(encoder.dim, num_tokens=encoder.grid.num_tokens),
        target=EmbeddingTarget(encoder),
        loss=sb.predicted_cosine,
        head=nn.Identity(),
    )


METHOD = Method(build)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
