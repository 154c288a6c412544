"""LeJEPA: views of an image near their mean, and embeddings that are normally distributed.

Paper    Balestriero and LeCun: "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics"
Idea     No teacher, no stop of gradients, no schedules: embeddings of views are drawn to the mean of the global ones,
         and a test of normality along random directions (SIGReg) keeps them from collapse.
What     the mean embedding of the global views, by the squared error
Where    whole views
Who      tokens of a view see each other
New      an objective that draws directions in every step, and adds SIGReg to the distance between views
Command  python examples/gallery/lejepa.py
"""

import torch
from torch import Tensor, nn

import ssl_blocks as sb
from examples.gallery.run import Method
from ssl_blocks.randomness import check_generator

DIM, NUM_DIRECTIONS, WEIGHT = 32, 256, 0.05


class LeJEPA(sb.objectives.JointEmbedding):
    """Invariance, and SIGReg along directions that are drawn."""

    def draw(self, images: sb.Views, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw the directions."""
        check_generator(generator, images.images[0].device)
        return torch.randn(DIM, NUM_DIRECTIONS, generator=generator, device=images.images[0].device)

    def compare(self, embeddings: Tensor, draw: Tensor) -> Tensor:
        """Compare ``[B, V, D]``."""
        center = embeddings[:, :2].mean(1, keepdim=True)  # of the global views
        normality = torch.stack([self.loss(view, draw) for view in embeddings.unbind(1)]).mean()
        return (1 - WEIGHT) * (embeddings - center).square().mean() + WEIGHT * normality


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.Objective:
    """Put the objective together."""
    return LeJEPA(
        encoder=sb.encoders.TokenRegions(encoder),
        head=nn.Sequential(nn.Linear(encoder.dim, 512), nn.GELU(), nn.Linear(512, DIM)),
        loss=sb.parts.sigreg,
    )


METHOD = Method(
    build,
    views=True,
    num_local=2,
)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
