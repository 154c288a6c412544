"""What features look like without any label: over how many directions they spread, and how evenly."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_blocks.bounds import Count, NotNegative, Positive
from ssl_blocks.doors import checked
from ssl_blocks.evaluation.checks import check_finite
from ssl_blocks.evaluation.protocol import Result

CHUNK = 2048  # rows compared with all others at a time
COLLAPSED_SPREAD, COLLAPSED_RANK = 0.01, 1.2


@checked
def rankme(features: Float[Tensor, "n d"], *, epsilon: NotNegative = 1e-7) -> float:
    """Count the directions that features ``[N, D]`` use, smoothly: RankMe (Garrido et al. 2023, eq. 1).

    ``exp(-sum p log p)`` of the singular values ``p = s / sum(s) + epsilon``, from 1 to ``min(N, D)``. The mean is not
    taken out, so that features far from 0 count fewer directions. Compare it on equally many images: the more, the
    higher. ``epsilon`` keeps the logarithm finite.

    Returns:
        The rank; 0 where all features are 0.

    Raises:
        ValueError: if features are not ``[N, D]`` with at least two rows, not finite, or ``epsilon`` is negative.

    Examples:
        >>> round(rankme(torch.eye(4)), 3), round(rankme(torch.ones(4, 4)), 3)
        (4.0, 1.0)
    """
    return _smooth_rank(torch.linalg.svdvals(_checked("features", features)), epsilon)


@checked
def effective_rank(features: Float[Tensor, "n d"]) -> float:
    """Count the directions in which features ``[N, D]`` vary, smoothly: the effective rank of their covariance.

    Roy & Vetterli 2007, definition 1: ``exp`` of the entropy of a matrix' singular values, as shares of their sum. Of
    a covariance these are the variances along its principal axes. 1: all vary along one line.

    Returns:
        The rank, at most ``min(N - 1, D)``; 0 where nothing varies.

    Raises:
        ValueError: as for `rankme`.

    Examples:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(effective_rank(square + 100), 3)
        2.0
    """
    return _smooth_rank(_variances(_checked("features", features)), 0.0)


@checked
def alpha_req(features: Float[Tensor, "n d"], *, first: Count = 4, last: Count = 50) -> float:
    """Tell how fast the variances of features fall: the exponent of alpha-ReQ (Agrawal et al. 2022).

    Variances along the principal axes, the largest first, are taken for ``c / rank ** alpha``, and a straight line is
    fitted to their logarithms with weights ``1 / rank``, as the authors' code does. They find features best at about 1:
    far above it few directions carry all, far below it all carry noise.

    Args:
        features: ``[N, D]``.
        first: rank at which the fit begins, from 1; earlier where there are no two variances from there on.
        last: rank at which it ends.

    Returns:
        Alpha; infinite where fewer than two variances differ from 0.

    Raises:
        ValueError: as for `rankme`, or if ``first < last`` does not hold.

    Examples:
        >>> axes = torch.arange(1, 9.0) ** -0.5
        >>> round(alpha_req(torch.cat([axes.diag(), -axes.diag()])), 3)
        1.0
    """
    if first >= last:
        raise ValueError(f"first={first} and last={last} must be first < last")
    variances = _variances(_checked("features", features))
    count = min(last, int((variances > 0).sum()))
    if count < 2:
        return math.inf
    rank = torch.arange(min(first, count - 1), count + 1, device=variances.device, dtype=variances.dtype)
    x, y, weight = rank.log(), variances[int(rank[0]) - 1 : count].log(), 1 / rank
    x, y = (values - (weight * values).sum() / weight.sum() for values in (x, y))
    return float(-(weight * x * y).sum() / (weight * x * x).sum())


@checked
def uniformity(features: Float[Tensor, "n d"], *, t: Positive = 2.0) -> float:
    """Tell how evenly features ``[N, D]`` cover the sphere: the logarithm of the mean Gaussian potential of all pairs.

    Wang & Isola 2020, Sec. 4.1.2: ``log mean exp(-t |x - y|²)`` of features of length 1, over pairs of different
    images. 0: all lie in one point; the lower, the more evenly; in many dimensions about ``-2t`` at best.

    Raises:
        ValueError: as for `rankme`, or if the sharpness ``t`` of the potential is not above 0.

    Examples:
        >>> round(uniformity(torch.tensor([[3.0, 0.0], [-1.0, 0.0]])), 6)  # as far apart as can be
        -8.0
    """
    rows = F.normalize(_checked("features", features), dim=1)
    count, total, squares = len(rows), rows.new_zeros(()), rows.square().sum(1)
    for some, length in zip(torch.split(rows, CHUNK), torch.split(squares, CHUNK), strict=True):
        total += (-t * (length[:, None] + squares - 2 * some @ rows.T).clamp(min=0)).exp().sum()
    # each row has met itself, at distance 0
    return float(((total - count).clamp(min=torch.finfo(total.dtype).tiny) / (count * (count - 1))).log())


@checked
def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], *, alpha: Positive = 2.0) -> float:
    """Tell how close two views of an image lie: the mean distance of positive pairs, to the power ``alpha``.

    Wang & Isola 2020, Sec. 4.1.1, of features of length 1. 0: views do not matter; 2: they have nothing in common
    (``alpha=2``). It is 0 for collapsed features, too: read it beside `uniformity`.

    Args:
        first: ``[N, D]`` features of one view of each image.
        second: of another view of the same images.
        alpha: power of the distance.

    Raises:
        ValueError: as for `rankme`, or if shapes differ, or ``alpha`` is not above 0.

    Examples:
        >>> alignment(torch.eye(2), 5 * torch.eye(2)), round(alignment(torch.eye(2), torch.eye(2).flip(0)), 6)
        (0.0, 2.0)
    """
    one, other = (F.normalize(_checked(*side), dim=1) for side in (("first", first), ("second", second)))
    return float((one - other).norm(dim=1).pow(alpha).mean())


@checked
def spread(features: Float[Tensor, "n d"]) -> float:
    """Tell how much the directions of features ``[N, D]`` differ: their deviation from the mean, at length 1.

    ``sqrt(mean |x - mean x|²)``. 0: all images look alike; 1: directions cancel out. SimSiam (Chen & He 2021, Fig. 2)
    watches the same, channel by channel, for collapse.

    Raises:
        ValueError: as for `rankme`.

    Examples:
        >>> spread(torch.tensor([[3.0, 0.0], [-1.0, 0.0]])), spread(torch.ones(2, 2))
        (1.0, 0.0)
    """
    rows = F.normalize(_checked("features", features), dim=1)
    return float((rows - rows.mean(0)).square().sum(1).mean().sqrt())


@dataclass(frozen=True)
class FeatureQuality(Result):
    """What features look like without any label: what the functions of these names find, of ``num_images`` images.

    ``alignment`` is ``None`` where there were no pairs.
    """

    rankme: float
    effective_rank: float
    alpha_req: float
    uniformity: float
    alignment: float | None
    spread: float
    num_images: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, which has no infinity: that is ``None``."""
        return {name: value if value is None or math.isfinite(value) else None for name, value in asdict(self).items()}

    def collapse(self) -> str | None:
        """What says that features have collapsed, in words; ``None``: nothing does.

        A spread below 0.01 means that all images get one and the same feature, but for rounding; an effective rank
        below 1.2, that features differ along a single line.
        """
        if self.spread < COLLAPSED_SPREAD:
            return (
                f"features have collapsed: their spread is {self.spread:.2g}, below {COLLAPSED_SPREAD}, so that all "
                "images look alike to the encoder"
            )
        if self.effective_rank < COLLAPSED_RANK:
            return (
                f"features have collapsed: their effective rank is {self.effective_rank:.2f}, below {COLLAPSED_RANK}, "
                "so that images differ along one direction alone"
            )
        return None


@checked
def feature_quality(
    features: Float[Tensor, "n d"], views: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]] | None = None
) -> FeatureQuality:
    """Measure all of it.

    Args:
        features: ``[N, D]`` of images as they are.
        views: features of two random views of each image, for `alignment`.

    Raises:
        ValueError: as for the measures.

    Examples:
        >>> feature_quality(torch.eye(4)).num_images
        4
    """
    measures = (rankme, effective_rank, alpha_req, uniformity, spread)
    found: dict[str, Any] = {measure.__name__: measure(features) for measure in measures}
    return FeatureQuality(alignment=None if views is None else alignment(*views), num_images=len(features), **found)


def _checked(name: str, features: Tensor) -> Tensor:
    """The features in float64, or an error that names them."""
    if len(features) < 2 or features.shape[1] < 1:
        raise ValueError(f"{name} of shape {tuple(features.shape)} must be [N, D] with at least two rows")
    check_finite(name, features)
    return features.detach().double()


def _variances(features: Tensor) -> Tensor:
    """Variances along the principal axes, falling; what is only rounding of float32 is 0."""
    values: Tensor = torch.linalg.svdvals(features - features.mean(0))
    size = max(float(values[0]), float(features.abs().max()))
    noise = size * max(features.shape) * torch.finfo(torch.float32).eps
    return torch.where(values > noise, values, 0.0).square() / len(features)


def _smooth_rank(values: Tensor, epsilon: float) -> float:
    """``exp`` of the entropy of values as shares of their sum."""
    total = float(values.sum())
    if total == 0:
        return 0.0
    shares = values / total + epsilon
    return float((-torch.special.xlogy(shares, shares).sum()).exp())
