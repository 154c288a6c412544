"""Joint embedding of views of an image: SimCLR, VICReg and whatever compares one vector per view."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.protocol import AnyRegionEncoder, RegionEncoder
from ssl_blocks.objectives.objective import Objective, beside_zero
from ssl_blocks.parts.gather import gathered
from ssl_blocks.values import ObjectiveOutput, Views


@checked
class JointEmbedding(Objective):
    """Embed every view of an image, and let a loss compare the embeddings of the whole batch.

    The batch is that of all processes, whose embeddings are gathered; of accumulated parts each is a batch of its own.

    Args:
        encoder: any region encoder; `TokenRegions` shows a vision transformer as one.
        head: from features to embeddings; ``None``: none. What is compared is thrown away after pretraining.
        loss: of embeddings ``[B, V, D]``: `nt_xent`, `vicreg`, your own.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.TokenRegions(sb.encoders.timm_vit(image_size=16, patch_size=4, depth=1))
        >>> objective = JointEmbedding(encoder=encoder, head=nn.Linear(192, 32), loss=sb.parts.nt_xent)
        >>> views = sb.Views((torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)), num_global=2)
        >>> objective(views).predictions.shape
        torch.Size([4, 2, 32])
    """

    encoder: RegionEncoder
    tokenizer = None
    takes_views = True
    per_part = True

    def __init__(
        self, *, encoder: AnyRegionEncoder, loss: Callable[..., Float[Tensor, ""]], head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.loss = encoder, loss
        self.head = nn.Identity() if head is None else head

    def draw(self, images: Views, *, generator: torch.Generator | None = None) -> Any:
        """Draw nothing: views are made before."""

    def compare(self, embeddings: Float[Tensor, "all v d"], draw: Any) -> Float[Tensor, ""]:
        """The loss of the embeddings of all processes; to be overridden where it needs what was drawn."""
        return self.loss(embeddings)

    def forward(self, images: Views, draw: Any = None) -> ObjectiveOutput:
        """Embed and compare.

        Args:
            images: at least two views; those of one size are embedded together.
            draw: the random choices.

        Returns:
            A row per view of an image, which holds its embedding, beside 0.

        Raises:
            ValueError: if there is only one view.
        """
        if len(images.images) < 2:
            raise ValueError("images must be Views of at least two crops, got a single one: nothing to compare")
        draw = self.draw(images) if draw is None else draw
        embeddings = self.head(torch.stack([self.encoder.regions(view).pooled for view in images.images], dim=1))
        return beside_zero(self.compare(gathered(embeddings), draw), embeddings, draw=draw)
