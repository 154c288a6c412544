"""I-JEPA: features of several blocks of an image, from a context that holds none of them.

Paper    Assran et al.: "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture"
Idea     Encode a part of the image; a narrow predictor says for each of four blocks, given its positions alone, what a
         moving average of the encoder makes of it in sight of the whole image. No pixels, no augmentation.
What     the teacher's output at the patch, normalised, by smooth L1
Where    four rectangles, which may overlap; what lies outside all of them is given
Who      given tokens see each other; tokens of a block see each other and what is given, but no other block; what is
         neither given nor in a block is seen by nobody
New      nothing; the size of rectangles is fixed for a run, where the paper draws it for every batch
Command  python examples/gallery/ijepa.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.Objective:
    """Put the objective together."""
    grid, narrow = encoder.grid, max(16, encoder.dim // 2)
    teacher = sb.MovingAverage(encoder, momentum=sb.parts.cosine_momentum(0.996))
    return sb.objectives.BlockPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        sampler=sb.parts.RectangleSampler(count=4, size=(3 * grid.height // 8, 3 * grid.width // 8)),
        decoder=sb.MaskTokenDecoder(grid=grid, dim=narrow, depth=2, num_heads=4, memory_dim=encoder.dim),
        target=sb.EncoderTarget(teacher, norm="token"),
        loss=sb.predicted_smooth_l1,
    )


METHOD = Method(build, base_lr=2e-3)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
