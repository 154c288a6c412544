"""What objectives over a sequence of segments have in common."""

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.parts.loss import predicted_mse
from ssl_blocks.parts.partition import SegmentPartitioner
from ssl_blocks.parts.serialize import Serializer
from ssl_blocks.parts.target import Target
from ssl_blocks.values import Grid, ObjectiveOutput, Serialization


def check_predict_first(encoder: TokenEncoder, predict_first: bool) -> None:
    """Refuse to predict the first segment out of nothing.

    Raises:
        ValueError: if it shall be predicted and the encoder has no prefix token.
    """
    if predict_first and not encoder.num_prefix:
        raise ValueError("predict_first=True needs an encoder with a prefix token: the first segment sees no other")


def draw_sequence(
    partitioner: SegmentPartitioner,
    serializer: Serializer,
    grid: Grid,
    images: Float[Tensor, "b c h w"],
    *,
    generator: torch.Generator | None,
    predict_first: bool,
) -> Serialization:
    """Draw segments and their order for every image.

    Raises:
        ValueError: if the generator is on another device, or each image is one single segment by construction, which
            leaves nothing to predict.
    """
    segments = partitioner(images, grid, generator=generator)
    if segments.counts[0] == 1 and not predict_first:
        raise ValueError(
            f"{type(partitioner).__name__} makes one segment of the {grid} grid: the first segment is context only, so "
            "nothing is left to predict. Use smaller or more segments"
        )
    return serializer(segments, generator=generator)


def score_sequence(
    predictions: Float[Tensor, "b t p"],
    target: Target,
    images: Float[Tensor, "b c h w"],
    draw: Serialization,
    *,
    predict_first: bool,
) -> ObjectiveOutput:
    """Compare the predictions of the predicted slots with their targets; the first step counts only on request."""
    predicted = draw.windows(predict_first)[1]
    targets, step = draw.take(target(images), predicted), draw.step[:, predicted]
    is_target = step >= (0 if predict_first else 1)
    return ObjectiveOutput(
        loss=predicted_mse(predictions, targets, is_target),
        predictions=predictions,
        targets=targets,
        index=draw.order[:, predicted],
        step=step,
        is_target=is_target,
        draw=draw,
    )
