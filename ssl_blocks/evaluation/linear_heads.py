"""Linear classifiers side by side: one pass over features trains them all."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.optim import Lars
from torch import Tensor, nn


class LinearHeads(nn.Module):
    """Linear classifiers that start alike and share one batch norm without scale and shift.

    MAE, appendix A.1: the norm takes the scale out of features, so that one learning rate suits them all.

    Args:
        dim: width of the features.
        num_classes: classes of each.
        num_heads: how many classifiers.
        normalize: whether features are batch-normalised.
        generator: source of the first weights, N(0, 0.01²), on the CPU; ``None`` uses torch's default.

    Examples:
        >>> LinearHeads(dim=4, num_classes=3, num_heads=2)(torch.randn(5, 4)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        num_heads: int,
        normalize: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_heads = num_classes, num_heads
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6) if normalize else nn.Identity()
        weight = 0.01 * torch.randn(num_classes, dim, generator=generator)
        # one parameter each: the trust ratio of LARS is that of a whole parameter
        self.weights = nn.ParameterList(nn.Parameter(weight.clone()) for _ in range(num_heads))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(num_classes)) for _ in range(num_heads))

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "h b k"]:
        """Logits of every head, ``[H, B, K]``."""
        x = F.linear(self.norm(features), torch.cat(list(self.weights)), torch.cat(list(self.biases)))
        return x.view(-1, self.num_heads, self.num_classes).transpose(0, 1)

    @torch.no_grad()
    def predict(self, features: Float[Tensor, "n d"], *, chunk: int = 16384) -> Int[Tensor, "h n"]:
        """Classes that every head gives to features ``[N, D]``, on the CPU."""
        device = self.biases[0].device
        rows = [self(part.to(device)).argmax(2).cpu() for part in torch.split(features, chunk)]
        return torch.cat(rows, dim=1)


def head_loss(
    logits: Float[Tensor, "h b k"], labels: Int[Tensor, " b"], is_seen: Bool[Tensor, "h b"]
) -> Float[Tensor, ""]:
    """Sum over heads of the mean cross entropy of the images that each head may see.

    A sum, so that no head's gradient depends on how many others there are.

    Examples:
        >>> head_loss(torch.zeros(2, 3, 4), torch.tensor([0, 1, 2]), torch.ones(2, 3, dtype=torch.bool))
        tensor(2.7726)
    """
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    losses = losses.view(is_seen.shape) * is_seen
    total: Tensor = (losses.sum(1) / is_seen.sum(1).clamp(min=1)).sum()
    return total


def lars(heads: LinearHeads, lrs: Sequence[float], *, momentum: float, weight_decay: float) -> Lars:
    """LARS as MAE uses it: weight decay and trust ratio (0.001) on weights, neither on biases; no Nesterov.

    Every head has a learning rate of its own; ``momentum`` is of the update, scaled already by the trust ratio.
    """
    groups: list[dict[str, Any]] = []
    for weight, bias, lr in zip(heads.weights, heads.biases, lrs, strict=True):
        # without always_adapt, timm leaves the trust ratio out where weight decay is 0
        groups.append({"params": [weight], "lr": lr, "weight_decay": weight_decay, "always_adapt": True})
        groups.append({"params": [bias], "lr": lr, "weight_decay": 0.0, "always_adapt": False})
    return Lars(groups, momentum=momentum, trust_coeff=0.001, nesterov=False)
