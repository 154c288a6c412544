"""How images go into an encoder, and features come out: the one place that knows."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, UInt
from torch import Tensor, nn

from ssl_blocks.bounds import Batch, Channels, Pixels, Positive
from ssl_blocks.data.augment import to_float
from ssl_blocks.doors import checked
from ssl_blocks.encoders import FeatureEncoder
from ssl_blocks.evaluation.checks import broken_rows
from ssl_blocks.grid import Grid
from ssl_blocks.modes import modes_kept
from ssl_blocks.parts.mask import SegmentCausalMask
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.values import Serialization

Attention = Literal["bidirectional", "causal"]


@checked
@dataclass(frozen=True, eq=False)
class Extractor:
    """An encoder, and all that is needed to feed it: images in, features out.

    Images are normalised, cut as pretraining did, and encoded batch by batch in evaluation mode and without gradients.

    Args:
        encoder: its module is moved to ``device`` when it is used, and left in the mode that it was in.
        mean: one number per channel on the 0..1 scale.
        std: the same.
        tokenizer: cuts the images as pretraining did; it alone says which images it takes. ``None`` hands over whole
            ones.
        device: where the encoder runs.
        dtype: its precision under autocast; ``None`` switches autocast off.
        attention: ``"bidirectional"``: all tokens see all. ``"causal"``: each sees itself and those before it in raster
            order, prefix tokens see each other alone; for encoders whose ``features`` takes a mask.
        batch_size: images per call of the encoder.

    Raises:
        ValueError: if mean and std are not one number per channel, ``batch_size`` is below 1, or the encoder takes no
            mask and ``attention`` asks for one.

    Examples:
        >>> extractor = Extractor(RawPixels(channels=1, size=(1, 2)), mean=(0.5,), std=(0.5,))
        >>> extractor(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        tensor([[-1.,  1.]])
    """

    encoder: FeatureEncoder
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    tokenizer: Tokenizer | None = None
    device: str | torch.device = "cpu"
    dtype: torch.dtype | None = None
    attention: Attention = "bidirectional"
    batch_size: Batch = 512

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if self.tokenizer is None and len(values) != self.encoder.channels:
                raise ValueError(
                    f"{name}={tuple(values)} must be one number for each of the encoder's {self.encoder.channels} "
                    "channels"
                )
        if self.attention == "causal" and not takes_mask(self.encoder):
            raise ValueError(
                f"attention='causal' needs an encoder of tokens whose features(images, mask=) takes a mask, and "
                f"{type(self.encoder).__name__} is none: leave it bidirectional"
            )

    def __call__(self, images: UInt[Tensor, "n c *s"]) -> Float[Tensor, "n d"]:
        """Features ``[N, D]``, float32 on the CPU, of images ``[N, C, H, W]`` on any device.

        Raises:
            ValueError: if there are no images, the encoder cannot take them or returns another shape, or features are
                NaN or infinite (`FeatureError`, which names the layer that they come from).
        """
        if len(images) == 0:
            raise ValueError(f"images of shape {tuple(images.shape)} must be at least one image")
        if self.tokenizer is None:
            check_channels(self.encoder, images.shape[1])
        with self._ready():
            try:
                return self._extract(images)
            except FeatureError as error:
                with layer_watch(self.encoder.module) as broken, suppress(FeatureError):
                    self._extract(images[error.image : error.image + 1])
                layer = broken[0] if broken else None
                raise FeatureError(error.message, image=error.image, autocast_dtype=self.dtype, layer=layer) from None
            except (AssertionError, RuntimeError, TypeError):
                self.check(images.shape[1:])  # if a single blank image does not fit either, it says so
                raise

    def of_parts(self, parts: Iterable[UInt[Tensor, "n c *s"]]) -> Float[Tensor, "m d"]:
        """Features of images that come in parts; none of no part."""
        return torch.cat([torch.empty(0, self.encoder.dim), *(self(part) for part in parts)])

    def encode(self, images: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d"]:
        """Features of images that are normalised already, on the device, as they come: nothing is read of them.

        A GPU is not waited for, and so nothing is checked.
        """
        with self._ready(), self._computing():
            parts = [self._encode(part.to(self.device)).float() for part in torch.split(images, self.batch_size)]
            return torch.cat(parts)

    def check(self, shape: Sequence[int]) -> None:
        """Refuse images of a shape (channels, height, width) that the encoder cannot take, by a try with a blank one.

        Raises:
            ValueError: naming the shape, and what the encoder says about it.
        """
        if self.tokenizer is None:
            check_channels(self.encoder, shape[0])
        with self._ready():
            check_images(self.encoder, shape, self._encode, self.device)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        first = next(self.encoder.module.parameters(), None)
        if first is not None and first.device != torch.device(self.device):
            # not where it lies there: weights put together of shards would fall apart
            self.encoder.module.to(self.device)
        with modes_kept(self.encoder.module, training=False):
            yield

    @contextmanager
    def _computing(self) -> Iterator[None]:
        kind, is_on = torch.device(self.device).type, self.dtype is not None
        known = kind != "meta"  # which has no autocast
        with torch.inference_mode(), torch.autocast(kind, self.dtype, is_on) if known else nullcontext():
            yield

    def _encode(self, x: Tensor) -> Tensor:
        given = x if self.tokenizer is None else self.tokenizer(x)
        if self.attention == "bidirectional":
            return self.encoder.features(given)
        encoder: Any = self.encoder  # of tokens, as was asked at the beginning
        mask = raster_causal_mask(encoder.grid, encoder.num_prefix, device=x.device)
        features: Tensor = encoder.features(given, mask=mask)
        return features

    def _extract(self, images: UInt[Tensor, "n c *s"]) -> Float[Tensor, "n d"]:
        rows = []
        with self._computing():
            for batch in torch.split(images, self.batch_size):
                features = self._encode(to_float(batch.to(self.device), self.mean, self.std))
                if features.ndim != 2 or len(features) != len(batch):
                    raise ValueError(
                        f"the encoder returned features of shape {tuple(features.shape)} for {len(batch)} images: "
                        f"must be [{len(batch)}, D]"
                    )
                rows.append(features.float().cpu())
        joined = torch.cat(rows)  # outside of inference mode: a probe may want to train on the result
        if broken := broken_rows(joined):
            raise FeatureError(
                f"the encoder must return finite features, but {len(broken)} of {len(joined)} images have NaN or "
                f"infinite ones, first image {broken[0]}",
                image=broken[0],
                autocast_dtype=self.dtype,
            )
        return joined


@checked
class RawPixels:
    """Normalised pixels as features: what an encoder is given, and must beat to be of use.

    ``size`` is height and width of the images in pixels.
    """

    def __init__(self, *, channels: Channels, size: tuple[Pixels, Pixels]) -> None:
        self.channels, self.dim, self.module = channels, channels * size[0] * size[1], nn.Identity()

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Pixels in a row, ``[B, C*H*W]``."""
        return images.flatten(1)


def takes_mask(encoder: FeatureEncoder) -> bool:
    """Whether an encoder's features can be asked for under a mask."""
    has_tokens = hasattr(encoder, "grid") and hasattr(encoder, "num_prefix")
    return has_tokens and "mask" in inspect.signature(encoder.features).parameters


def raster_causal_mask(grid: Grid, num_prefix: int, *, device: torch.device | str = "cpu") -> Bool[Tensor, "1 1 s s"]:
    """Let each token see itself and those before it in raster order; prefix tokens see each other alone.

    Examples:
        >>> raster_causal_mask(Grid(1, 2), num_prefix=1)[0, 0].int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    count = grid.num_tokens
    slots = torch.arange(count, device=device)[None]
    reading = Serialization(order=slots, step=slots, step_sizes=(1,) * count)
    mask = SegmentCausalMask()(reading, slice(0, count), slice(0, count), num_prefix).source
    assert mask is not None
    return mask


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
    encode: Callable[[Float[Tensor, "b c *s"]], Tensor],
    device: torch.device | str = "cpu",
) -> None:
    """Refuse images of a shape (channels, height, width) that an encoder cannot take, by a try with a blank one.

    What the encoder refuses by a ``ValueError`` of its own is left in its words; other errors become one that names the
    shape. The encoder's module lies on ``device``, and ``encode`` is how it is called.
    """
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
