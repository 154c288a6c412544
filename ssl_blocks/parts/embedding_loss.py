"""Losses between embeddings of several views of the same images: all of them need the whole batch.

They are computed in single precision, under autocast, too: small differences decide which neighbour is the nearest.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_blocks.bounds import Count, NotNegative, Positive
from ssl_blocks.doors import checked
from ssl_blocks.modes import full_precision

Loss = TypeVar("Loss", bound=Callable[..., Tensor])
Embeddings = Float[Tensor, "b v d"]


def in_single(loss: Loss) -> Loss:
    """Have a loss see embeddings in single precision, and its matrix products kept in it."""

    @wraps(loss)
    def single(embeddings: Tensor, *args: Any, **kwargs: Any) -> Any:
        with full_precision(embeddings):
            return loss(embeddings.float(), *args, **kwargs)

    return single  # type: ignore[return-value]


@checked
@in_single
def nt_xent(embeddings: Embeddings, *, temperature: Positive = 0.5) -> Float[Tensor, ""]:
    """Tell the other views of an image from all views of other images (SimCLR, Sec. 2.1).

    The cross-entropy of cosines over a temperature, the mean over all pairs of views of one image.

    Args:
        embeddings: ``[B, V, D]``, of all images of the batch, two views at least.
        temperature: by which cosines are divided.

    Examples:
        >>> nt_xent(torch.eye(2)[:, None].expand(2, 2, 2), temperature=1.0)  # log(e + 2) - 1
        tensor(0.5514)
    """
    batch, views = embeddings.shape[:2]
    unit = F.normalize(embeddings.flatten(0, 1), dim=-1)
    itself = torch.eye(batch * views, dtype=torch.bool, device=unit.device)
    scores = (unit @ unit.T / temperature).masked_fill(itself, float("-inf"))
    image = torch.arange(batch, device=unit.device).repeat_interleave(views)
    pairs = (image[:, None] == image) & ~itself
    return -torch.where(pairs, scores.log_softmax(-1), 0.0).sum() / (batch * views * (views - 1))


@checked
@in_single
def vicreg(
    embeddings: Embeddings,
    *,
    invariance: NotNegative = 25.0,
    variance: NotNegative = 25.0,
    covariance: NotNegative = 1.0,
) -> Float[Tensor, ""]:
    """Keep views alike, every component's deviation above 1, and components uncorrelated (VICReg, Sec. 4).

    Args:
        embeddings: ``[B, V, D]``, of all images of the batch, two at least.
        invariance: weight of the squared distance between views, the mean over pairs.
        variance: weight of what deviations over the batch lack of 1, the mean over components and views.
        covariance: weight of squared covariances of different components: their sum over ``D``, for each view of a
            pair.

    Examples:
        >>> vicreg(torch.zeros(2, 2, 3), variance=1.0)  # deviations of 0.01 lack .99
        tensor(0.9900)
    """
    z = embeddings
    batch, views, dim = z.shape
    # the mean squared distance of two different views, by way of their mean
    apart = 2 * (z - z.mean(1, keepdim=True)).square().sum(1).mean() / (views - 1)
    centered = z - z.mean(0)
    deviation = (centered.square().sum(0) / (batch - 1) + 1e-4).sqrt()
    lacking = F.relu(1 - deviation).mean()
    products = torch.einsum("bvi,bvj->vij", centered, centered) / (batch - 1)
    others = products.square().sum() - products.diagonal(dim1=1, dim2=2).square().sum()
    return invariance * apart + variance * lacking + covariance * 2 * others / (dim * views)


@checked
@in_single
def koleo(embeddings: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Spread embeddings: minus the mean log distance to the nearest neighbour, on the sphere (KoLeo; DINOv2, Sec. 4).

    Args:
        embeddings: ``[B, D]``, of all images of the batch, two at least.

    Examples:
        >>> koleo(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))  # -log sqrt(2)
        tensor(-0.3466)
    """
    unit = F.normalize(embeddings, dim=-1)
    cosine = unit.detach() @ unit.detach().T
    neighbour = cosine.fill_diagonal_(-2.0).argmax(1)
    distance = (unit - unit[neighbour]).square().sum(-1).add(1e-12).sqrt()
    return -(distance + 1e-8).log().mean()


@checked
@in_single
def sigreg(
    embeddings: Float[Tensor, "b d"], directions: Float[Tensor, "d k"], *, knots: Count = 17, reach: Positive = 5.0
) -> Float[Tensor, ""]:
    """How far embeddings are from a standard normal distribution, along directions (SIGReg; LeJEPA, Sec. 4).

    The Epps-Pulley statistic of every projection: the squared distance between its empirical characteristic function
    and a standard normal's, under a standard normal's weight, integrated by the trapezoidal rule, times the number of
    embeddings; the mean over directions.

    Args:
        embeddings: ``[B, D]``, of all images of the batch.
        directions: ``[D, K]``, drawn anew in every step; they are brought to length 1.
        knots: points at which the functions are compared.
        reach: they lie between minus and plus this.

    Examples:
        >>> normal = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
        >>> bool(sigreg(normal, torch.ones(1, 1)) < sigreg(normal + 0.2, torch.ones(1, 1)))
        True
    """
    points = torch.linspace(-reach, reach, knots, device=embeddings.device)
    projected = embeddings @ F.normalize(directions.float(), dim=0)
    angle = projected[..., None] * points  # [B, K, knots]
    normal = (-points.square() / 2).exp()
    error = (angle.cos().mean(0) - normal).square() + angle.sin().mean(0).square()
    return len(embeddings) * torch.trapezoid(error * normal, points, dim=-1).mean()
