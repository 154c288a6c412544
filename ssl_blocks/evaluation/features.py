"""Features that are not finite, and images that do not fit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.encoders import FeatureEncoder


class FeatureError(ValueError):
    """Features that are NaN or infinite.

    It knows the number of the first such image, and the layer that they come from, where it was looked for.
    """

    def __init__(
        self, message: str, *, image: int, autocast_dtype: torch.dtype | None, layer: str | None = None
    ) -> None:
        where = f", first in its layer {layer}" if layer else ""
        super().__init__(f"{message}{where} (autocast_dtype={autocast_dtype})")
        self.message, self.image, self.layer = message, image, layer


def check_images(
    encoder: FeatureEncoder,
    shape: Sequence[int],
    encode: Callable[[Float[Tensor, "b c h w"]], Tensor],
    device: torch.device | str = "cpu",
) -> None:
    """Refuse images of a shape (channels, height, width) that an encoder cannot take, by a try with a blank one.

    What the encoder refuses by a ``ValueError`` of its own is left in its words; other errors become one that names the
    shape. The encoder's module lies on ``device``, and ``encode`` is how it is called.
    """
    check_channels(encoder, shape[0])
    try:
        with torch.no_grad():
            encode(torch.zeros(1, *shape, device=device))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, TypeError) as error:
        size = "x".join(map(str, shape))
        raise ValueError(f"images of {size} (channels x height x width) do not fit the encoder: {error}") from error


def check_channels(encoder: FeatureEncoder, channels: int) -> None:
    """Refuse images of other channels than the encoder's."""
    if channels != encoder.channels:
        raise ValueError(f"images have {channels} channels, but the encoder takes {encoder.channels}")


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
