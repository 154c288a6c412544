"""AttMask: hide what a teacher attends to.

Paper    Kakogeorgiou et al.: "What to Hide from Your Students: Attention-Guided Masked Image Modeling"
Idea     Random masks often hide nothing of interest. Hide the patches to which the class token of the student's moving
         average attends most, and let the student predict what the teacher makes of them.
What     the teacher's output at the patch, by smooth L1
Where    the 40 % of the patches that the teacher's class token attends to most, in the mean over heads
Who      all tokens see each other; a hidden one is a mask token with its position
New      a partitioner that asks the teacher
Command  python examples/gallery/attmask.py
"""

import torch
from torch import Tensor

import ssl_blocks as sb
from examples.gallery.run import Method
from ssl_blocks.encoders import attention_weights


class AttendedPartitioner:
    """Hide the most attended patches: segment 1."""

    def __init__(self, teacher: sb.MovingAverage, *, hidden: float) -> None:
        self.teacher, self.hidden = teacher, hidden

    def __call__(self, images: Tensor, grid: sb.Grid, *, generator: torch.Generator | None = None) -> sb.Segments:
        """Ask the teacher; nothing is drawn."""
        encoder, n = self.teacher.copy, grid.num_tokens
        weights = attention_weights(encoder, images)[:, :, 0, encoder.num_prefix :].mean(1)  # type: ignore[arg-type]
        kept = n - int(n * self.hidden)
        ids = (weights.argsort(1).argsort(1) >= kept).long()  # the least attended stay
        return sb.Segments(levels=(ids,), counts=(2,), step_sizes=(kept, n - kept))


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    teacher = sb.MovingAverage(encoder, momentum=sb.parts.cosine_momentum(0.996))
    return sb.simmim(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=AttendedPartitioner(teacher, hidden=0.4),
        target=sb.EncoderTarget(teacher, norm="token"),
        loss=sb.predicted_smooth_l1,
    )


METHOD = Method(build, class_token=True, draw_looks=True, base_lr=2e-3)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
