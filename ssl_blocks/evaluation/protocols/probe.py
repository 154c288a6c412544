"""The linear probe."""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from ssl_blocks.bounds import Batch, Count, Decay, Epochs, Positive, Rate, Span
from ssl_blocks.engine.settings import AreaShares, StrictModel, section
from ssl_blocks.evaluation.protocol import CannotScoreError, Protocol, Score

if TYPE_CHECKING:
    from ssl_blocks.evaluation.labelled import Labelled
    from ssl_blocks.evaluation.subject import Subject

IMAGENET_IMAGES, PAPER_LR, PAPER_BATCH = 1_281_167, 0.1, 16384
SMALLEST_BATCH = 16  # statistics of fewer rows are noise, and steps at such rates never settle


class LinearSettings(StrictModel):
    """How LARS trains a linear probe; the defaults are those of RandSAC, Sec. 5.1 and Table 18, for ImageNet.

    LARS moves a weight by a share of its norm that depends on the rate alone, so with few steps the paper's rate ends
    near the start. Rates around ``0.1 * 1281167 / num_images`` make up for that, of which one is chosen on images held
    out, and a batch of a 16th of train, or 16 images, makes steps small enough. The rate of a step is
    ``lr * batch / 256``.
    """

    lrs: tuple[Rate, ...] | None = Field(
        None,
        min_length=1,
        description="(lars) base rates, of which one is chosen on images held out of train; default: four around the "
        "paper's 0.1, scaled to the number of images",
    )
    batch_size: Batch | None = Field(
        None, description="(lars) images per step; default: the paper's 16384, or a 16th of train, or 16"
    )
    epochs: Epochs = Field(90, description="(lars) passes over train")
    warmup_epochs: Span = Field(10.0, description="(lars) of the linear warm-up; at most a tenth of a shorter run")
    weight_decay: Decay = Field(0.0, description="(lars) of the weights")
    trust_coefficient: Positive = Field(
        0.001, description="(lars) share of its norm that a weight moves by at a rate of 1"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="(lars) of the update")
    normalize: bool = Field(True, description="(lars) batch norm without scale and shift in front")
    validation: float = Field(0.1, gt=0, lt=1, description="share of each class that is held out where one is chosen")
    crop_scale: AreaShares = Field(
        (0.08, 1.0), description="(lars, augment) share of the area that a random crop keeps"
    )

    def rates(self, num_images: int) -> tuple[float, ...]:
        """Base learning rates that are trained side by side on so many images.

        Examples:
            >>> [round(lr, 1) for lr in LinearSettings().rates(50_000)]
            [0.9, 2.6, 7.7, 25.6]
        """
        center = PAPER_LR * IMAGENET_IMAGES / num_images
        return self.lrs or (center / 3, center, center * 3, center * 10)

    def batch(self, num_images: int) -> int:
        """Images per step, or all of train where it has fewer.

        Examples:
            >>> LinearSettings().batch(50_000), LinearSettings(batch_size=256).batch(100)
            (3125, 100)
        """
        return min(self.batch_size or min(PAPER_BATCH, max(SMALLEST_BATCH, num_images // 16)), num_images)


class ProbeSettings(LinearSettings):
    """A linear classifier on frozen features."""

    solver: Literal["lars", "logistic"] = Field("lars", description="LARS, or logistic regression to its optimum")
    augment: bool = Field(False, description="(lars) encode cropped and mirrored images anew in every epoch")
    layers: Count = Field(1, description="features of this many layers side by side, counted from the last")
    pooling: Literal["auto", "mean", "class_token", "both"] = Field(
        "auto", description="of each layer; auto: as the encoder pools by itself; others for encoders of tokens"
    )
    cs: tuple[Positive, ...] = Field(
        (0.01, 0.1, 1.0),
        min_length=1,
        description="(logistic) inverse penalties; one is chosen on images held out of train",
    )

    @model_validator(mode="after")
    def _fits_the_solver(self) -> "ProbeSettings":
        if self.augment and self.solver == "logistic":
            raise ValueError("probe.augment=True goes with probe.solver=lars, which sees every epoch's images anew")
        return self


class Probe(Protocol[ProbeSettings, "Labelled"]):
    """Linear probe on all labels."""

    name = "probe"
    Settings = ProbeSettings
    heading = "linear probe (rate or C)"

    def check(self, subject: "Subject", data: "Labelled") -> None:
        """Refuse one class, and layers or a class token that the encoder does not have."""
        with section("probe"):
            self._read(subject)
        if data.num_classes < 2:
            raise CannotScoreError("train has one class: there is nothing to tell apart")

    def _read(self, subject: "Subject") -> "Subject":
        """The subject with features of the layers that were asked for; raw pixels have none, and stay as they are."""
        from ssl_blocks.evaluation.extract import RawPixels
        from ssl_blocks.evaluation.pooling import PooledLayers

        layers, pooling, own = self.settings.layers, self.settings.pooling, subject.extractor
        if (layers == 1 and pooling == "auto") or isinstance(own.encoder, RawPixels):
            return subject
        reader = PooledLayers(own.encoder, layers=layers, pooling="mean" if pooling == "auto" else pooling)
        return replace(subject, extractor=replace(own, encoder=reader))

    def score(self, subject: "Subject", data: "Labelled") -> Score:
        """Accuracy of the rate, or the penalty, that did best on images held out."""
        from ssl_blocks.evaluation.linear import augmented_linear_probe, linear_probe
        from ssl_blocks.evaluation.logistic import logistic_probe

        settings, device, subject = self.settings, subject.extractor.device, self._read(subject)
        if settings.augment:
            found = augmented_linear_probe(subject.extractor, data, settings=settings, seed=self.seed, progress=True)
        elif settings.solver == "logistic":
            found = logistic_probe(
                *subject.features(data), cs=settings.cs, validation=settings.validation, seed=self.seed, device=device
            )
        else:
            found = linear_probe(*subject.features(data), settings=settings, seed=self.seed, device=device)
        more = {"features": subject.pooling}
        return Score({**found.as_dict(), **more}, f"{found.accuracy:.1%} ({found.chosen:.2g})")
