"""Losses: sums over what is predicted, divided by its number in the whole batch."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def predicted_mse(
    predictions: Float[Tensor, "b t p"], targets: Float[Tensor, "b t p"], is_target: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
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
    dtype = torch.promote_types(predictions.dtype, torch.float32)
    # a where, not a product, and before the square: a row that does not count may hold anything, NaN included
    error = torch.where(is_target[..., None], predictions.to(dtype) - targets.to(dtype), 0.0)
    return error.square().mean(-1).sum() / is_target.sum().clamp(min=1)


def predicted_cross_entropy(
    predictions: Float[Tensor, "b t p"], targets: Float[Tensor, "b t p"], is_target: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
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
    dtype = torch.promote_types(predictions.dtype, torch.float32)
    # a row that does not count may hold anything, NaN included
    logits, wanted = (torch.where(is_target[..., None], x.to(dtype), 0.0) for x in (predictions, targets))
    return -(wanted * logits.log_softmax(-1)).sum() / is_target.sum().clamp(min=1)
