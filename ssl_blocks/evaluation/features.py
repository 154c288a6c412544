"""Features of a frozen encoder."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ssl_blocks.data.augment import to_float
from ssl_blocks.encoders import FeatureEncoder
from ssl_blocks.modes import modes_kept
from ssl_blocks.tokenizers import Tokenizer


def extract_features(
    encode: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b d"]],
    images: UInt8[Tensor, "n c h w"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 512,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
) -> Float[Tensor, "n d"]:
    """Encode images batch by batch, without gradients.

    Args:
        encode: from normalised images ``[B, C, H, W]`` on ``device`` to features ``[B, D]``. Put its module
            into eval mode before.
        images: ``[N, C, H, W]`` uint8, on any device.
        mean: one number per channel on the 0..1 scale.
        std: the same.
        batch_size: images per call of ``encode``.
        device: where ``encode`` runs.
        autocast_dtype: precision of ``encode`` under autocast; ``None`` switches autocast off.

    Returns:
        ``[N, D]`` float32 on the CPU.

    Raises:
        ValueError: if ``batch_size`` is below 1, there are no images, ``encode`` returns another shape, or a
            feature is NaN or infinite.

    Examples:
        >>> images = torch.full((3, 1, 2, 2), 255, dtype=torch.uint8)
        >>> extract_features(lambda x: x.mean((2, 3)), images, mean=(0.5,), std=(0.5,))
        tensor([[1.],
                [1.],
                [1.]])
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if len(images) == 0:
        raise ValueError(f"images of shape {tuple(images.shape)} must be at least one image")
    kind = torch.device(device).type
    rows = []
    with (
        torch.inference_mode(),
        torch.autocast(kind, dtype=autocast_dtype, enabled=autocast_dtype is not None),
    ):
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            features = encode(to_float(batch.to(device), mean, std))
            if features.ndim != 2 or len(features) != len(batch):
                raise ValueError(
                    f"encode returned features of shape {tuple(features.shape)} for {len(batch)} images: "
                    f"must be [{len(batch)}, D]"
                )
            rows.append(features.float().cpu())
    # joined outside of inference mode: a probe may want to train on the result
    joined = torch.cat(rows)
    _check_finite(joined, autocast_dtype)
    return joined


def encoder_features(
    encoder: FeatureEncoder,
    images: UInt8[Tensor, "n c h w"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    tokenizer: Tokenizer | None = None,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
) -> Float[Tensor, "n d"]:
    """Features of an encoder in evaluation mode; its module is left in the mode that it was in.

    Args:
        encoder: whose module lies on ``device``.
        images: ``[N, C, H, W]`` uint8, on any device.
        mean: one number per channel on the 0..1 scale.
        std: the same.
        tokenizer: cuts the images as pretraining did, where it leaves pixels out; ``None`` hands over whole images.
        device: where the encoder runs.
        autocast_dtype: its precision under autocast; ``None`` switches autocast off.

    Returns:
        ``[N, D]`` float32 on the CPU.
    """

    def encode(batch: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return encoder.features(batch if tokenizer is None else tokenizer(batch))

    with modes_kept(encoder.module, training=False):
        return extract_features(encode, images, mean=mean, std=std, device=device, autocast_dtype=autocast_dtype)


def _check_finite(features: Tensor, autocast_dtype: torch.dtype | None) -> None:
    is_finite = features.isfinite().all(1)
    if not is_finite.all():
        broken = int((~is_finite).sum())
        raise ValueError(
            f"encode must return finite features, but {broken} of {len(features)} images have NaN or "
            f"infinite ones, first image {int(is_finite.int().argmin())} (autocast_dtype={autocast_dtype})"
        )
