"""data2vec: a moving average's contextual features of hidden patches.

Paper    Baevski et al.: "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language"
Idea     The target of a patch is what the encoder's own moving average makes of it in sight of the whole image: the
         mean of the outputs of its last blocks, each normalised.
What     the mean of a teacher's last blocks at the patch, by smooth L1
Where    rectangular blocks, 60 % of the image
Who      all tokens of the student see each other, mask tokens included; the teacher sees the whole image
New      nothing
Command  python examples/gallery/data2vec.py
"""

from functools import partial

import ssl_blocks as sb
from examples.gallery.run import Method


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    teacher = sb.MovingAverage(encoder, momentum=sb.parts.cosine_momentum(0.996))  # it follows by itself
    return sb.simmim(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.BlockSubsetPartitioner(hidden=0.6),
        target=sb.EncoderTarget(teacher, layers=encoder.depth // 2, norm="token"),
        loss=partial(sb.predicted_smooth_l1, beta=2.0),
    )


METHOD = Method(build, base_lr=2e-3)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
