"""How an encoder is fine-tuned."""

from collections.abc import Sequence
from dataclasses import dataclass

from ssl_blocks.evaluation.mixing import Mixing, TrainAugment


@dataclass(frozen=True)
class FinetuneSettings:
    """How an encoder is fine-tuned; the defaults are those of RandSAC, Sec. 5.1 and Table 19.

    Args:
        base_lr: the rate is ``base_lr * batch / 256``.
        batch_size: images per step, over all accumulated parts; fewer where train is smaller.
        accumulate: parts of a step that are computed one after the other.
        epochs: passes over train; images that fill no batch are left out of an epoch.
        warmup_epochs: of the linear warm-up, counted in.
        weight_decay: of AdamW; none for vectors, positions and prefix tokens.
        layer_decay: factor from each layer to the one before it; 1 lets all learn alike.
        drop_path: rate of the last block; the first has 0.
        magnitude: of RandAugment; ``None`` switches it off.
        deviation: of RandAugment's magnitude.
        crop_scale: smallest and largest area of random crops, as a share of the image.
        smoothing: of the labels.
        mixup: parameter of its beta distribution; 0 switches it off.
        cutmix: the same.
        fresh_norm: whether the mean is taken before the norm (MAE's global pool): see `Classifier`.
        train_fixed: whether what came fixed is trained, too, such as a table of sines and cosines.
        seed: decides first weights, order, augmentation and what is dropped.
        num_workers: processes that read and augment images; they change nothing of the result.

    Raises:
        ValueError: if a number is out of range.
    """

    base_lr: float = 5e-4
    batch_size: int = 1024
    accumulate: int = 1
    epochs: int = 100
    warmup_epochs: float | int = 5
    weight_decay: float = 0.05
    layer_decay: float = 0.65
    drop_path: float = 0.1
    magnitude: int | None = 9
    deviation: float = 0.5
    crop_scale: tuple[float, float] = (0.08, 1.0)
    smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    fresh_norm: bool = False
    train_fixed: bool = True
    seed: int = 0
    num_workers: int = 0

    def __post_init__(self) -> None:
        if min(self.batch_size, self.accumulate, self.epochs) < 1:
            raise ValueError(
                f"batch_size={self.batch_size}, accumulate={self.accumulate} and epochs={self.epochs} must be at "
                "least 1"
            )
        if self.base_lr <= 0 or self.weight_decay < 0 or not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"base_lr={self.base_lr} must be above 0, weight_decay={self.weight_decay} not negative, and "
                f"layer_decay={self.layer_decay} within (0, 1]"
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be at least 0 and below epochs={self.epochs}")
        if self.batch_size % self.unit:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of {self.unit}: {self.accumulate} parts"
                + (", in which images are mixed in pairs" if self.mixes else "")
            )
        Mixing(2, mixup=self.mixup, cutmix=self.cutmix, smoothing=self.smoothing)  # refuse wrong numbers
        self.augment((1, 1), mean=(0.5,))

    def augment(self, size: tuple[int, int], *, mean: Sequence[float]) -> TrainAugment:
        """Augmentation of images of a size (height, width) in pixels."""
        return TrainAugment(
            size, mean=mean, magnitude=self.magnitude, deviation=self.deviation, crop_scale=self.crop_scale
        )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return max(self.mixup, self.cutmix) > 0

    @property
    def unit(self) -> int:
        """What the number of images of a step must be a multiple of."""
        return self.accumulate * (2 if self.mixes else 1)

    def batch_of(self, num_images: int) -> int:
        """Images per step where train has ``num_images``.

        Raises:
            ValueError: if they do not suffice for one step.
        """
        batch = min(self.batch_size, num_images) // self.unit * self.unit
        if batch == 0:
            raise ValueError(f"train of {num_images} images must have at least {self.unit}, for one step")
        return batch
