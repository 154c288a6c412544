"""Fine-tuning."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ssl_blocks.engine.settings import section
from ssl_blocks.evaluation.protocol import Protocol, Score, TrainedSettings

if TYPE_CHECKING:
    from ssl_blocks.evaluation.labelled import Labelled
    from ssl_blocks.evaluation.subject import Subject


class FinetuneOptions(TrainedSettings):
    """Encoder and head trained together: the paper's settings."""

    epochs: PositiveInt = Field(100, description="passes over train")
    base_lr: PositiveFloat = Field(5e-4, description="rate per 256 images of a batch")
    batch_size: PositiveInt = Field(1024, description="images per step")
    accumulate: PositiveInt = Field(1, description="take a step's images in this many parts, to save memory")
    warmup_epochs: NonNegativeFloat = Field(5.0, description="of the linear warm-up")
    weight_decay: NonNegativeFloat = Field(0.05, description="of AdamW")
    layer_decay: PositiveFloat = Field(0.65, description="factor of the rate from each layer to the one before it")
    drop_path: NonNegativeFloat = Field(0.1, description="rate of the last block")
    magnitude: NonNegativeInt | None = Field(9, description="of RandAugment")
    deviation: NonNegativeFloat = Field(0.5, description="of RandAugment's magnitude")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="share of the area that a random crop keeps")
    smoothing: NonNegativeFloat = Field(0.1, description="of labels")
    mixup: NonNegativeFloat = Field(0.8, description="parameter of its beta distribution; 0: none")
    cutmix: NonNegativeFloat = Field(1.0, description="the same")
    fresh_norm: bool = Field(False, description="average before the norm (MAE's global pool)")
    train_fixed: bool = Field(True, description="train what came fixed, such as a table of sines and cosines")
    from_random: bool = Field(False, description="train from random weights, too: the supervised baseline")


class Finetune(Protocol[FinetuneOptions, "Labelled"]):
    """Train encoder and head on all labels.

    Args:
        settings: ``None`` means the paper's.
        **context: as of every protocol.

    Raises:
        ValueError: if a number is out of range.
    """

    name = "finetune"
    Settings = FinetuneOptions
    is_frozen = False
    is_shared = True

    def __init__(self, settings: FinetuneOptions | None = None, **context: Any) -> None:
        from ssl_blocks.evaluation.finetune_settings import FinetuneSettings

        super().__init__(settings, **context)
        with section("finetune"):  # refuses numbers that no data can make right
            known = [field.name for field in fields(FinetuneSettings) if field.name not in ("seed", "num_workers")]
            self.training = FinetuneSettings(**{name: getattr(self.settings, name) for name in known}, seed=self.seed)

    @property
    def heading(self) -> str:
        """What its column is called in tables."""
        return "fine-tuned"

    def with_random(self, wanted: bool) -> bool:
        """By an option of its own, for it takes long."""
        return self.settings.from_random

    def check(self, subject: "Subject", data: "Labelled") -> None:
        """Refuse an encoder that does not tell its layers, or has no place for drop path."""
        from ssl_blocks.evaluation.finetune import make_classifier

        training, extractor = self.training, subject.extractor
        with section("finetune"):
            self.settings.check_folder()
            model = make_classifier(
                extractor.encoder, num_classes=data.num_classes, settings=training, tokenizer=extractor.tokenizer
            )
            model.parameter_groups(weight_decay=training.weight_decay, layer_decay=training.layer_decay)

    def score(self, subject: "Subject", data: "Labelled") -> Score:
        """Accuracy after the last epoch."""
        from ssl_blocks.evaluation.finetune import finetune_encoder

        training, extractor = self.training, subject.extractor
        done = finetune_encoder(
            extractor.encoder,
            data.train,
            data.test,
            settings=training,
            progress=True,
            **extractor.feeding,
            **self.settings.keeping(subject.name),
        )
        return Score(done.score.as_dict(), f"{done.score.accuracy:.1%}")
