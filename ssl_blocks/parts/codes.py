"""Classes as targets: a codebook turns whatever another target says into one of its entries."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_blocks.bounds import Count, Seed, Whole
from ssl_blocks.doors import checked
from ssl_blocks.parts.target import Target
from ssl_blocks.randomness import random_ranks, seeded_generator


@checked
def kmeans(
    values: Float[Tensor, "n p"], count: Count, *, iterations: Whole = 20, seed: Seed = 0
) -> Float[Tensor, "k p"]:
    """Find cluster centres by Lloyd's iterations, from values drawn at random.

    A centre that no value is nearest to stays where it is.

    Args:
        values: ``[n, P]``.
        count: number of centres, ``K``.
        iterations: how often centres move.
        seed: of the first centres.

    Returns:
        Centres ``[K, P]``.

    Raises:
        ValueError: if there are fewer values than centres.

    Examples:
        >>> kmeans(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), 2).sort(0).values
        tensor([[ 0.5000],
                [10.5000]])
    """
    if not 1 <= count <= len(values):
        raise ValueError(f"count={count} must be at least 1 and at most the {len(values)} values")
    generator = None if values.is_meta else seeded_generator(values.device, seed)
    first = random_ranks(1, len(values), generator=generator, device=values.device)[0].argsort()[:count]
    centers = values[first]
    for _ in range(iterations):
        mine = nearest(values, centers)
        total = torch.zeros_like(centers).index_add(0, mine, values)
        number = torch.zeros_like(centers[:, :1]).index_add(0, mine, torch.ones_like(values[:, :1]))
        centers = torch.where(number > 0, total / number.clamp(min=1), centers)
    return centers


def nearest(values: Float[Tensor, "*b p"], centers: Float[Tensor, "k p"]) -> Int[Tensor, "*b"]:
    """Index of the centre at the smallest Euclidean distance to each value."""
    distance = centers.square().sum(-1) - 2 * values @ centers.T  # what belongs to the value alone is left out
    return distance.argmin(-1)


@checked
class ClusterTarget(nn.Module):
    """Predict which entry of a codebook a patch is nearest to: one-hot rows, so predictions are logits (BEiT, iGPT).

    BEiT takes its codes from a discrete VAE, iGPT from a k-means of colours. The codebook is a buffer and is saved.

    Args:
        base: what is compared with the centres: pixels, or any other target.
        centers: the codebook ``[K, base.dim]``, such as `kmeans` finds.

    Raises:
        ValueError: if the centres have another width than the base.

    Examples:
        >>> from ssl_blocks import PatchTokenizer, PixelTarget
        >>> base = PixelTarget(PatchTokenizer(image_size=4, patch_size=2, channels=1))
        >>> target = ClusterTarget(base, torch.tensor([[0.0] * 4, [1.0] * 4]))
        >>> target(torch.full((1, 1, 4, 4), 0.8))[0, 0]
        tensor([0., 1.])
    """

    centers: Tensor

    def __init__(self, base: Target, centers: Float[Tensor, "k p"]) -> None:
        super().__init__()
        if centers.ndim != 2 or centers.shape[1] != base.dim:
            raise ValueError(f"centers of shape {tuple(centers.shape)} must be [K, {base.dim}], as wide as the base")
        self.base, self.dim = base, len(centers)
        self.register_buffer("centers", centers.detach().clone())

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b n k"]:
        """Return one-hot targets ``[B, N, K]`` of images."""
        values = self.base(images)
        return F.one_hot(nearest(values, self.centers.to(values.dtype)), self.dim).to(values.dtype)
