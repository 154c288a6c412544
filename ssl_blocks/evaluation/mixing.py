"""Augmentation of fine-tuning: crops, RandAugment, mixup and CutMix, by timm."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int, UInt
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from ssl_blocks.data.augment import HIGHEST, RandomResizedCropFlip

MODES = {1: "L", 3: "RGB"}
MAX_MAGNITUDE = 9.99  # at 10, which noise reaches, no bit would be left of a posterised image, and Pillow refuses that


@contextmanager
def timm_draws(seed: int) -> Iterator[None]:
    """Seed Python's and numpy's global generators, from which timm draws, and put them back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm knows no other
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


class TrainAugment:
    """Crop and mirror a batch of images, then change each by two operations drawn at random (RandAugment).

    timm's RandAugment with operations that grow with the magnitude, ``rand-m9-mstd0.5-inc1``, the one of MAE; it works
    on PIL images, so that each image makes the detour.

    Args:
        size: height and width of the images in pixels.
        mean: one number per channel on the 0..1 scale; it fills what operations leave empty.
        magnitude: of the operations, 0..10; ``None`` switches them off.
        deviation: of the magnitude, drawn anew for every operation.
        crop_scale: smallest and largest area of random crops, as a share of the image.

    Raises:
        ValueError: if operations are asked for images of neither one nor three channels, or a number is out of range.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        mean: Sequence[float],
        magnitude: int | None = 9,
        deviation: float = 0.5,
        crop_scale: tuple[float, float] = (0.08, 1.0),
    ) -> None:
        self.crop = RandomResizedCropFlip(size, scale=crop_scale)
        self.mode = MODES.get(len(mean))
        self.transform = None
        if magnitude is None:
            return
        if self.mode is None:
            raise ValueError(
                f"magnitude={magnitude} needs images of 1 or 3 channels, but they have {len(mean)}: set it to None"
            )
        if not (0 <= magnitude <= 10 and 0 <= deviation < math.inf):
            raise ValueError(f"magnitude={magnitude} must lie within 0..10, and deviation={deviation} not be negative")
        fill = tuple(min(255, round(255 * value)) for value in mean)
        self.transform = rand_augment_transform(
            f"rand-m{magnitude}-mstd{deviation}-inc1",
            {
                "translate_const": int(min(size) * 0.45),
                "img_mean": fill if len(fill) > 1 else fill[0],
                "magnitude_max": MAX_MAGNITUDE,
            },
        )

    def __call__(self, images: UInt[Tensor, "b c h w"], *, seed: int) -> UInt[Tensor, "b c p q"]:
        """Augment images ``[B, C, H, W]`` on the CPU, each in its own way; the seed decides all draws."""
        if self.transform is not None and images.dtype != torch.uint8:
            raise ValueError("magnitude must be None for images of more than 8 bits: RandAugment knows bytes only")
        cropped = self.crop(images.float(), generator=torch.Generator().manual_seed(seed))
        cropped = cropped.round().clamp(0, HIGHEST[images.dtype]).to(images.dtype)
        if self.transform is None:
            return cropped
        with timm_draws(seed):
            return torch.stack([self._operate(image) for image in cropped])

    def _operate(self, image: Tensor) -> Tensor:
        pixels = image.permute(1, 2, 0).numpy()
        assert self.transform is not None
        changed = np.array(self.transform(Image.fromarray(pixels[:, :, 0] if self.mode == "L" else pixels)))
        return torch.from_numpy(changed[None] if changed.ndim == 2 else changed.transpose(2, 0, 1).copy())


class Mixing:
    """Mix pairs of images and their labels by mixup or CutMix, one of the two per batch; smooth the labels.

    Args:
        num_classes: of the labels.
        mixup: parameter of the beta distribution of shares; 0 switches it off.
        cutmix: the same for the area of boxes.
        smoothing: share of each label that is spread over all classes.

    Raises:
        ValueError: if a parameter is negative, or the smoothing not within [0, 1).

    Examples:
        >>> _, targets = Mixing(2, mixup=0.0, cutmix=0.0)(torch.zeros(1, 1, 2, 2), torch.tensor([1]), seed=0)
        >>> targets
        tensor([[0.0500, 0.9500]])
    """

    def __init__(self, num_classes: int, *, mixup: float = 0.8, cutmix: float = 1.0, smoothing: float = 0.1) -> None:
        if not (0 <= mixup < math.inf and 0 <= cutmix < math.inf and 0 <= smoothing < 1):
            raise ValueError(
                f"mixup={mixup} and cutmix={cutmix} must not be negative, and smoothing={smoothing} within [0, 1)"
            )
        self.mixes = max(mixup, cutmix) > 0
        self.mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=num_classes)  # type: ignore[no-untyped-call]
        self.mix.mixup_enabled = self.mixes

    def __call__(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], *, seed: int
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        """Mixed images and soft labels ``[B, K]``; the seed decides all draws.

        Images ``[B, C, H, W]`` are normalised and left as they are, and an even number, unless mixing is off.
        """
        odd = len(images) % 2  # timm pairs the first with the last, and wants an even number even where none is mixed
        if odd and self.mixes:
            raise ValueError(f"mixup and cutmix need an even number of images, but there are {len(images)}")
        padded = torch.cat([images, images[:1]]) if odd else images.clone()
        named = torch.cat([labels, labels[:1]]) if odd else labels
        with timm_draws(seed):
            mixed, targets = self.mix(padded, named)
        return mixed[: len(images)], targets[: len(images)]
