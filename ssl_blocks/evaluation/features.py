"""Features of a frozen encoder."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ssl_blocks.data.augment import to_float
from ssl_blocks.encoders import FeatureEncoder
from ssl_blocks.modes import modes_kept
from ssl_blocks.parts.tokenize import Tokenizer


class FeatureError(ValueError):
    """Features that are NaN or infinite.

    Args:
        message: how many.
        image: number of the first image that has such features.
        autocast_dtype: precision of the encoder.
        layer: name of the layer that they come from, where it was looked for.
    """

    def __init__(
        self, message: str, *, image: int, autocast_dtype: torch.dtype | None, layer: str | None = None
    ) -> None:
        where = f", first in its layer {layer}" if layer else ""
        super().__init__(f"{message}{where} (autocast_dtype={autocast_dtype})")
        self.message, self.image, self.layer = message, image, layer


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
            feature is NaN or infinite (`FeatureError`).

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
    broken = (~joined.isfinite().all(1)).nonzero()[:, 0].tolist()
    if broken:
        raise FeatureError(
            f"encode must return finite features, but {len(broken)} of {len(joined)} images have NaN or "
            f"infinite ones, first image {broken[0]}",
            image=broken[0],
            autocast_dtype=autocast_dtype,
        )
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

    Raises:
        ValueError: if the encoder cannot take images of this size or number of channels, or features are NaN or
            infinite (`FeatureError`, which names the layer that they come from).
    """

    def encode(batch: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return encoder.features(batch if tokenizer is None else tokenizer(batch))

    def extract(part: UInt8[Tensor, "m c h w"]) -> Float[Tensor, "m d"]:
        return extract_features(encode, part, mean=mean, std=std, device=device, autocast_dtype=autocast_dtype)

    _check_channels(encoder, images)
    with modes_kept(encoder.module, training=False):
        try:
            return extract(images)
        except FeatureError as error:
            with layer_watch(encoder.module) as broken, suppress(FeatureError):
                extract(images[error.image : error.image + 1])
            layer = broken[0] if broken else None
            raise FeatureError(error.message, image=error.image, autocast_dtype=autocast_dtype, layer=layer) from None
        except (AssertionError, RuntimeError, TypeError):
            check_images(encoder, images, encode, device)  # if a single blank image does not fit either, it says so
            raise


def check_images(
    encoder: FeatureEncoder,
    images: UInt8[Tensor, "n c h w"],
    encode: Callable[[Float[Tensor, "b c h w"]], Tensor],
    device: torch.device | str = "cpu",
) -> None:
    """Refuse images that an encoder cannot take, by a try with a blank one of the same shape.

    What the encoder refuses by a ``ValueError`` of its own is left in its words.

    Args:
        encoder: whose module lies on ``device``.
        images: of which the shape counts.
        encode: how the encoder is called.
        device: where it lies.

    Raises:
        ValueError: naming the shape, and what the encoder says about it.
    """
    _check_channels(encoder, images)
    shape = tuple(images.shape[1:])
    try:
        with torch.no_grad():
            encode(torch.zeros(1, *shape, device=device))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, TypeError) as error:
        size = "x".join(map(str, shape))
        raise ValueError(f"images of {size} (channels x height x width) do not fit the encoder: {error}") from error


def _check_channels(encoder: FeatureEncoder, images: Tensor) -> None:
    if images.shape[1] != encoder.channels:
        raise ValueError(f"images have {images.shape[1]} channels, but the encoder takes {encoder.channels}")


@contextmanager
def layer_watch(module: nn.Module) -> Iterator[list[str]]:
    """Note the names of layers whose output is NaN or infinite, in the order in which they are done.

    Examples:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(1, 1), nn.ReLU())
        >>> _ = nn.init.constant_(model[1].weight, float("inf"))
        >>> with layer_watch(model) as broken:
        ...     _ = model(torch.ones(1, 1))
        >>> broken
        ['1', '2']
    """
    broken: list[str] = []

    def watcher(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def watch(_module: nn.Module, _inputs: Any, output: Any) -> None:
            values = output if isinstance(output, tuple | list) else (output,)
            tensors = [x for x in values if isinstance(x, Tensor) and x.is_floating_point()]
            if not all(bool(x.isfinite().all()) for x in tensors):
                broken.append(name)

        return watch

    handles = [part.register_forward_hook(watcher(name)) for name, part in module.named_modules() if name]
    try:
        yield broken
    finally:
        for handle in handles:
            handle.remove()
