"""Projection heads for distillation."""

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssl_blocks.bounds import Classes, Width
from ssl_blocks.doors import checked
from ssl_blocks.modes import modes_kept
from ssl_blocks.values import Progress


@checked
def dino_head(
    dim: Width,
    out_dim: Classes = 65_536,
    *,
    hidden_dim: Width = 2048,
    bottleneck_dim: Width = 256,
    batch_norm: bool = False,
    norm_last_layer: bool = True,
) -> nn.Module:
    """Build lightly's DINO head: three layers, l2-normalisation, and a last layer whose rows have a norm.

    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (DINO), appendix C. lightly normalises by
    a hook that torch has deprecated and that cannot be copied; here it is a parametrization of the same weights. On
    top of it lies a gate, by which an objective freezes the layer for a while.

    Args:
        dim: width of the features.
        out_dim: number of classes, ``K``.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width before the last layer.
        batch_norm: whether hidden layers have batch norms.
        norm_last_layer: whether the rows of the last layer keep length 1.

    Returns:
        A module from features ``[n, dim]`` to logits ``[n, K]``.

    Examples:
        >>> dino_head(8, 32, hidden_dim=16, bottleneck_dim=4)(torch.rand(2, 8)).shape
        torch.Size([2, 32])
    """
    from lightly.models.modules.heads import DINOProjectionHead  # heavy, and needed here only

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        head = DINOProjectionHead(dim, hidden_dim, bottleneck_dim, out_dim, batch_norm=batch_norm)
        layer = nn.utils.remove_weight_norm(head.last_layer)
    nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.fill_(1)
    layer.parametrizations.weight.original0.requires_grad_(not norm_last_layer)
    parametrize.register_parametrization(layer, "weight", LastLayerGate(), unsafe=True)
    return cast(nn.Module, head)


@torch.no_grad()
def check_head(head: nn.Module, *, dim: int, out_dim: int) -> None:
    """Refuse a head that does not lead from the encoder's width to the number of classes, by a try with zeros."""
    weight = next(head.parameters(), torch.zeros(0))
    features = torch.zeros(2, dim, dtype=weight.dtype, device=weight.device)
    wanted = f"head must lead from the encoder's {dim} values to out_dim={out_dim} classes"
    try:
        with modes_kept(head, training=False):
            shape = tuple(head(features).shape)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{wanted}, but does not take them: {reason}") from error
    if shape != (2, out_dim):
        raise ValueError(f"{wanted}, but gives {list(shape)} for two images")


class LastLayerGate(nn.Module):
    """Let the gradient of a weight through, or make it 0; while ``is_open`` is false, training leaves the weight alone.

    Examples:
        >>> gate, weight = LastLayerGate(), torch.ones(2, requires_grad=True)
        >>> gate.set_open(False)
        >>> gate(weight).sum().backward()
        >>> weight.grad
        tensor([0., 0.])
    """

    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.closed_epochs = 0
        self.is_open = True
        self.register_buffer("factor", torch.ones(()), persistent=False)

    def before_step(self, progress: Progress) -> None:
        """Stay closed in the first ``closed_epochs`` epochs."""
        self.set_open(progress.epoch >= self.closed_epochs)

    def set_open(self, is_open: bool) -> None:
        """Open or close the gate."""
        self.is_open = is_open
        self.factor.fill_(float(is_open))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is."""
        scaled: Tensor = _ScaleGradient.apply(weight, self.factor)
        return scaled


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *outgoing: Tensor) -> tuple[Tensor, None]:
        return outgoing[0] * ctx.saved_tensors[0], None
