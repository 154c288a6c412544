"""DINOv2: DINO, iBOT and KoLeo on one pass of the student over masked views.

Paper    Oquab et al.: "DINOv2: Learning Robust Visual Features without Supervision"
Idea     The losses of DINO on class tokens and of iBOT on hidden patches, each with a head of its own, and a term that
         keeps the images of a batch apart. The student runs once over masked large views and small ones.
What     the teacher's distribution over classes: of another view, and of each hidden patch of the same view
Where    rectangular blocks of half of the large views, 30 % of a view
Who      tokens of a view see each other, mask tokens included; the teacher sees whole large views
New      nothing; the teacher is centred, where the paper's runs a Sinkhorn-Knopp iteration
Command  python examples/gallery/dinov2.py
"""

import ssl_blocks as sb
from examples.gallery.run import Method
from ssl_blocks.objectives import DistilledTokens, DistilledViews, MaskedViews, SpreadViews

NUM_CLASSES = 256


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.WeightedSum:
    """Put the objective together."""
    views = MaskedViews(encoder, sb.BlockSubsetPartitioner(hidden=0.3))
    schedule = sb.TeacherSchedule(temperature=0.07, warmup_temperature=0.04, warmup_epochs=2)
    of_views, of_tokens = (
        sb.dino_head(encoder.dim, NUM_CLASSES, hidden_dim=2 * encoder.dim, bottleneck_dim=64) for _ in range(2)
    )
    return sb.WeightedSum(
        {
            "dino": DistilledViews(views, of_views, NUM_CLASSES, schedule=schedule),
            "ibot": DistilledTokens(views, of_tokens, NUM_CLASSES, schedule=schedule),
            "koleo": SpreadViews(views),
        },
        weights={"dino": 1.0, "ibot": 1.0, "koleo": 0.1},
        shared=views,
    )


METHOD = Method(
    build,
    class_token=True,
    views=True,
    num_local=2,
    base_lr=2e-3,
)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
