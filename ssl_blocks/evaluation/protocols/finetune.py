"""Fine-tuning."""

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from ssl_blocks.bounds import Batch, Decay, Epochs, NotNegative, Parts, Rate, Span, Workers
from ssl_blocks.engine.settings import AreaShares, StrictModel, section
from ssl_blocks.evaluation.protocol import CannotScoreError, Protocol, Score, TrainedSettings

if TYPE_CHECKING:
    from ssl_blocks.evaluation.labelled import Labelled
    from ssl_blocks.evaluation.subject import Subject


class FinetuneSettings(StrictModel):
    """How encoder and head are trained together; the defaults are those of RandSAC, Sec. 5.1 and Table 19.

    The rate is ``base_lr * batch_size / 256``. Images that fill no batch are left out of an epoch.
    """

    epochs: Epochs = Field(100, description="passes over train")
    base_lr: Rate = Field(5e-4, description="rate per 256 images of a batch")
    batch_size: Batch = Field(1024, description="images per step; fewer where train is smaller")
    accumulate: Parts = Field(1, description="take a step's images in this many parts, to save memory")
    warmup_epochs: Span = Field(5.0, description="of the linear warm-up, counted in; at most a tenth of a shorter run")
    weight_decay: Decay = Field(0.05, description="of AdamW; none for vectors, positions and prefix tokens")
    layer_decay: float = Field(0.65, gt=0, le=1, description="factor of the rate from each layer to the one before it")
    drop_path: float = Field(0.1, ge=0, lt=1, description="rate of the last block; the first has 0")
    magnitude: int | None = Field(9, ge=0, le=10, description="of RandAugment; None switches it off")
    deviation: NotNegative = Field(0.5, description="of RandAugment's magnitude")
    crop_scale: AreaShares = Field((0.08, 1.0), description="share of the area that a random crop keeps")
    smoothing: float = Field(0.1, ge=0, lt=1, description="of labels")
    mixup: NotNegative = Field(0.8, description="parameter of its beta distribution; 0: none")
    cutmix: NotNegative = Field(1.0, description="the same")
    fresh_norm: bool = Field(False, description="average before the norm (MAE's global pool)")
    train_fixed: bool = Field(True, description="train what came fixed, such as a table of sines and cosines")
    num_workers: Workers = Field(0, description="processes that read images; they change nothing of the result")

    @model_validator(mode="after")
    def _fits_together(self) -> "FinetuneSettings":
        if self.batch_size % self.unit:
            raise ValueError(
                f"finetune.batch_size={self.batch_size} must be a multiple of {self.unit}: {self.accumulate} parts"
                + (", in which images are mixed in pairs" if self.mixes else "")
            )
        return self

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


class FinetuneOptions(TrainedSettings, FinetuneSettings):
    """Encoder and head trained together: the paper's settings."""


class Finetune(Protocol[FinetuneOptions, "Labelled"]):
    """Train encoder and head on all labels."""

    name = "finetune"
    Settings = FinetuneOptions
    is_frozen = False
    is_shared = True
    heading = "fine-tuned"

    def check(self, subject: "Subject", data: "Labelled") -> None:
        """Refuse an encoder that does not tell its layers, or has no place for drop path."""
        from ssl_blocks.evaluation.finetune import make_classifier

        own, x = self.settings, subject.extractor
        if data.num_classes < 2:
            raise CannotScoreError("train has one class: there is nothing to tell apart")
        with section("finetune"):
            own.check_folder()
            model = make_classifier(x.encoder, num_classes=data.num_classes, settings=own, tokenizer=x.tokenizer)
            model.parameter_groups(weight_decay=own.weight_decay, layer_decay=own.layer_decay)

    def score(self, subject: "Subject", data: "Labelled") -> Score:
        """Accuracy after the last epoch."""
        from ssl_blocks.evaluation.finetune import finetune_encoder

        keeping = self.settings.keeping(subject.name)
        done = finetune_encoder(
            subject.extractor, data, settings=self.settings, seed=self.seed, progress=True, **keeping
        )
        return Score(done.score.as_dict(), f"{done.score.accuracy:.1%}")
