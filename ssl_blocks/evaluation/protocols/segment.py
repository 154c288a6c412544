"""Segmentation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat, PositiveInt

from ssl_blocks.engine.settings import StrictModel, section
from ssl_blocks.evaluation.protocol import Protocol, Score

if TYPE_CHECKING:
    from ssl_blocks.evaluation.labelled import Labelled
    from ssl_blocks.evaluation.overlap import SegmentationScores
    from ssl_blocks.evaluation.pairs import SegmentationData
    from ssl_blocks.evaluation.subject import Subject


class SegmentSettings(StrictModel):
    """A pyramid and a small head for segmentation."""

    data: str = Field("shapes", description="shapes (generated), voc, voc:PATH or maskfolder:PATH")
    num_classes: PositiveInt | None = Field(None, description="of a mask folder")
    freeze: bool = Field(False, description="train pyramid and head only")
    width: PositiveInt = Field(64, description="channels of maps and head")
    epochs: PositiveInt = Field(20, description="passes over train")
    batch_size: PositiveInt = Field(16, description="images per step")
    lr: PositiveFloat = Field(5e-4, description="peak learning rate")
    from_random: bool = Field(False, description="train from random weights, too")


class Segment(Protocol[SegmentSettings, "SegmentationData"]):
    """Train a pyramid and a head on images and masks.

    Args:
        settings: ``None`` means the defaults.
        root: folder of Pascal VOC.
        **context: as of every protocol.

    Raises:
        ValueError: if a number is out of range.
    """

    name = "segment"
    Settings = SegmentSettings
    is_frozen = False
    heading = "segmentation: mean IoU, pixels"

    def __init__(self, settings: SegmentSettings | None = None, *, root: Path = Path(".data"), **context: Any) -> None:
        from ssl_blocks.evaluation.dense import SegmentationTraining

        super().__init__(settings, **context)
        self.root, own = root, self.settings
        with section("segment"):
            self.training = SegmentationTraining(epochs=own.epochs, batch_size=own.batch_size, lr=own.lr)

    @classmethod
    def configured(cls, config: Any, **context: Any) -> Sequence[Protocol[Any, Any]]:
        """With the folder that all data lies in."""
        return [cls(config.segment, root=config.data.root, **context)]

    def with_random(self, wanted: bool) -> bool:
        """By an option of its own, for it takes long."""
        return self.settings.from_random

    def load(self, subject: "Subject", images: "Callable[[], Labelled]") -> "SegmentationData":
        """Images of the encoder's size, and their masks.

        Raises:
            ValueError: if the encoder has no tokens of whole images, or data and encoder do not fit together.
            FileNotFoundError: if the data is not there.
        """
        from ssl_blocks.encoders import TokenEncoder
        from ssl_blocks.evaluation.pairs import load_segmentation
        from ssl_blocks.evaluation.pyramid import FeaturePyramid

        encoder, size = subject.extractor.encoder, subject.image_size
        if not isinstance(encoder, TokenEncoder) or subject.extractor.tokenizer is not None or size is None:
            raise ValueError(
                f"segment needs an encoder of tokens that takes whole images, and {subject.name} "
                f"({type(encoder).__name__}) is none"
            )
        with section("segment"):
            FeaturePyramid(encoder, out_channels=self.settings.width)  # refuses an encoder that cannot have one
        return load_segmentation(
            self.settings.data,
            image_size=size,
            num_classes=self.settings.num_classes,
            channels=encoder.channels,
            root=self.root,
            seed=self.seed,
        )

    def baselines(self, data: "SegmentationData") -> dict[str, Score]:
        """The most frequent class everywhere: what a model must beat."""
        from ssl_blocks.evaluation.overlap import majority_baseline

        return {"most frequent class": _shown(majority_baseline(data))}

    def score(self, subject: "Subject", data: "SegmentationData") -> Score:
        """Overlap and share of right pixels on the test images."""
        from ssl_blocks.evaluation.dense import evaluate_segmentation

        x, own = subject.extractor, self.settings
        found = evaluate_segmentation(
            subject.tokens,
            data=data,
            mean=x.mean,
            std=x.std,
            freeze=own.freeze,
            width=own.width,
            training=self.training,
            seed=self.seed,
            device=x.device,
            autocast_dtype=x.dtype,
        )
        return _shown(found)


def _shown(found: "SegmentationScores") -> Score:
    return Score(found.as_dict(), f"{found.mean_iou:.1%}, {found.pixel_accuracy:.1%}")
