"""Losses: sums over what is predicted, divided by its number in the whole batch."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ssl_blocks.bounds import Positive
from ssl_blocks.doors import checked

Rows = Float[Tensor, "b t p"]
Counts = Bool[Tensor, "b t"]


@runtime_checkable
class Loss(Protocol):
    """Compares predictions with targets."""

    def __call__(self, predictions: Rows, targets: Rows, is_target: Counts, /) -> Float[Tensor, ""]:
        """Return the mean over all rows of the batch that count.

        Args:
            predictions: ``[B, t, P]``.
            targets: ``[B, t, P]``.
            is_target: ``[B, t]``, ``True`` where a row counts; others may hold anything, NaN included.
        """
        ...


@checked
def predicted_mse(predictions: Rows, targets: Rows, is_target: Counts) -> Float[Tensor, ""]:
    """Mean squared error over all predicted values of the batch.

    Images with more predicted tokens weigh more. An image without any counts zero; a batch without any has
    loss 0 and gradients of 0. Computed in single precision at least.

    Args:
        predictions: ``[B, t, P]``.
        targets: ``[B, t, P]``.
        is_target: ``[B, t]``, ``True`` where a row counts.

    Examples:
        >>> predicted_mse(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.tensor([[True, False]]))
        tensor(1.)
    """
    return _mean(_error(predictions, targets, is_target).square().mean(-1), is_target)


@checked
def predicted_l1(predictions: Rows, targets: Rows, is_target: Counts) -> Float[Tensor, ""]:
    """Mean absolute error over all predicted values of the batch (SimMIM, Sec. 3.3); otherwise as `predicted_mse`.

    Args:
        predictions: ``[B, t, P]``.
        targets: ``[B, t, P]``.
        is_target: ``[B, t]``, ``True`` where a row counts.

    Examples:
        >>> predicted_l1(torch.full((1, 2, 3), 2.0), torch.zeros(1, 2, 3), torch.tensor([[True, False]]))
        tensor(2.)
    """
    return _mean(_error(predictions, targets, is_target).abs().mean(-1), is_target)


@checked
def predicted_smooth_l1(
    predictions: Rows, targets: Rows, is_target: Counts, *, beta: Positive = 1.0
) -> Float[Tensor, ""]:
    """Squared error near 0, absolute error from ``beta`` on (data2vec, Sec. 3.3); otherwise as `predicted_mse`.

    Args:
        predictions: ``[B, t, P]``.
        targets: ``[B, t, P]``.
        is_target: ``[B, t]``, ``True`` where a row counts.
        beta: where the one passes into the other; bind another by ``functools.partial``.

    Examples:
        >>> count = torch.tensor([[True]])
        >>> predicted_smooth_l1(torch.full((1, 1, 3), 5.0), torch.zeros(1, 1, 3), count, beta=2.0)  # 5 - 2 / 2
        tensor(4.)
    """
    error = _error(predictions, targets, is_target)
    return _mean(F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=beta).mean(-1), is_target)


@checked
def predicted_cosine(predictions: Rows, targets: Rows, is_target: Counts) -> Float[Tensor, ""]:
    """One minus the cosine of prediction and target, the mean over all predicted tokens of the batch.

    Args:
        predictions: ``[B, t, P]``.
        targets: ``[B, t, P]``.
        is_target: ``[B, t]``, ``True`` where a row counts.

    Examples:
        >>> predicted_cosine(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[3.0, 0.0]]]), torch.tensor([[True]]))
        tensor(1.)
    """
    ours, theirs = _counted(predictions, is_target, 1.0), _counted(targets, is_target, 1.0)
    return _mean(torch.where(is_target, 1 - F.cosine_similarity(ours, theirs, dim=-1), 0.0), is_target)


@checked
def predicted_cross_entropy(predictions: Rows, targets: Rows, is_target: Counts) -> Float[Tensor, ""]:
    """Cross-entropy between logits and target probabilities, the mean over all predicted tokens of the batch.

    An image without any counts zero; a batch without any has loss 0 and gradients of 0. Computed in single precision
    at least.

    Args:
        predictions: logits ``[B, t, P]``.
        targets: probabilities ``[B, t, P]``, such as one-hot rows.
        is_target: ``[B, t]``, ``True`` where a row counts.

    Examples:
        >>> is_target = torch.tensor([[True, False]])
        >>> predicted_cross_entropy(torch.zeros(1, 2, 4), torch.eye(4)[None, :2], is_target)  # log 4
        tensor(1.3863)
    """
    logits, wanted = _counted(predictions, is_target), _counted(targets, is_target)
    return _mean(-(wanted * logits.log_softmax(-1)), is_target)


def _counted(x: Tensor, is_target: Tensor, otherwise: float = 0.0) -> Tensor:
    """In single precision at least; a row that does not count may hold anything, NaN included."""
    return torch.where(is_target[..., None], x.to(torch.promote_types(x.dtype, torch.float32)), otherwise)


def _error(predictions: Tensor, targets: Tensor, is_target: Tensor) -> Tensor:
    # a where, not a product, and before any square
    dtype = torch.promote_types(predictions.dtype, torch.float32)
    return torch.where(is_target[..., None], predictions.to(dtype) - targets.to(dtype), 0.0)


def _mean(errors: Tensor, is_target: Counts) -> Float[Tensor, ""]:
    """Mean over the rows that count; what belongs to others is 0 already."""
    return errors.sum() / is_target.sum().clamp(min=1)
