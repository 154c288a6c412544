"""iBOT: a teacher's classes of views, and of hidden patches, by one head.

Paper    Zhou et al.: "iBOT: Image BERT Pre-Training with Online Tokenizer"
Idea     DINO, and masked image modelling whose codes are the teacher's own: of a hidden patch the student says what its
         moving average, which sees the patch, says of it.
What     the teacher's distribution over classes: of another view, and of each hidden patch of the same view
Where    rectangular blocks of half of the large views, 30 % of a view
Who      tokens of a view see each other, mask tokens included; the teacher sees whole views
New      nothing
Command  python examples/gallery/ibot.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method
from ssl_blocks.objectives import DistilledTokens, DistilledViews, MaskedViews

NUM_CLASSES = 256


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.WeightedSum:
    """Put the objective together."""
    views = MaskedViews(encoder, sb.BlockSubsetPartitioner(hidden=0.3))
    head = sb.dino_head(encoder.dim, NUM_CLASSES, hidden_dim=2 * encoder.dim, bottleneck_dim=64)  # both use it
    schedule = sb.TeacherSchedule(temperature=0.07, warmup_temperature=0.04, warmup_epochs=2)
    return sb.WeightedSum(
        {
            "dino": DistilledViews(views, head, NUM_CLASSES, schedule=schedule),
            "ibot": DistilledTokens(views, head, NUM_CLASSES, schedule=schedule),
        },
        shared=views,
    )


METHOD = Method(
    build,
    class_token=True,
    views=True,
    base_lr=2e-3,
)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
