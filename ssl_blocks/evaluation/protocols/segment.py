"""Segmentation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ssl_blocks.bounds import Batch, Count, Decay, Epochs, Positive, Rate, Width, Workers
from ssl_blocks.engine.settings import AreaShares, StrictModel, section
from ssl_blocks.evaluation.protocol import Protocol, Score, TrainedSettings

if TYPE_CHECKING:
    from ssl_blocks.data.pairs import SegmentationData
    from ssl_blocks.evaluation.labelled import Labelled
    from ssl_blocks.evaluation.overlap import SegmentationScores
    from ssl_blocks.evaluation.subject import Subject


class SegmentationTraining(StrictModel):
    """How a segmentation model is trained: AdamW, a linear warm-up, then half a cosine down to 0.

    Images that fill no batch are left out of an epoch.
    """

    epochs: Epochs = Field(20, description="passes over train")
    batch_size: Batch = Field(16, description="images per step; fewer where train is smaller")
    lr: Rate = Field(5e-4, description="peak learning rate, of encoder and head alike")
    weight_decay: Decay = Field(0.05, description="of all but norms, biases, positions and prefix tokens")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps")
    clip: Positive = Field(1.0, description="largest norm of the gradient")
    crop_scale: AreaShares | None = Field(
        (0.5, 1.0), description="share of the area that a random crop keeps; None: neither cropped nor mirrored"
    )
    num_workers: Workers = Field(0, description="processes that read images; they change nothing of the result")


class SegmentSettings(TrainedSettings, SegmentationTraining):
    """A pyramid and a small head for segmentation."""

    data: str = Field("shapes", description="shapes (generated), voc, voc:PATH or maskfolder:PATH")
    num_classes: Count | None = Field(None, description="of a mask folder")
    freeze: bool = Field(False, description="train pyramid and head only")
    width: Width = Field(64, description="channels of maps and head")


class Segment(Protocol[SegmentSettings, "SegmentationData"]):
    """Train a pyramid and a head on images and masks; ``root`` is the folder of Pascal VOC."""

    name = "segment"
    Settings = SegmentSettings
    is_frozen = False
    is_shared = True
    heading = "segmentation: mean IoU, pixels"

    def __init__(
        self,
        settings: SegmentSettings | None = None,
        *,
        root: Path = Path(".data"),
        value_range: tuple[float, float] | None = None,
        **context: Any,
    ) -> None:
        super().__init__(settings, **context)
        self.root, self.value_range = root, value_range

    @classmethod
    def configured(cls, config: Any, **context: Any) -> Sequence[Protocol[Any, Any]]:
        """With the folder that all data lies in, and the range of its values."""
        return [cls(config.segment, root=config.data.root, value_range=config.data.value_range, **context)]

    def load(self, subject: "Subject", images: "Callable[[], Labelled]") -> "SegmentationData":
        """Images of the encoder's size, and their masks."""
        from ssl_blocks.data.pairs import load_segmentation
        from ssl_blocks.evaluation.dense import tokens_of
        from ssl_blocks.evaluation.pyramid import FeaturePyramid

        encoder = tokens_of("segment", subject.extractor)
        assert subject.image_size is not None
        height, width = subject.image_size
        with section("segment"):
            FeaturePyramid(encoder, out_channels=self.settings.width)  # refuses an encoder that cannot have one
        return load_segmentation(
            self.settings.data,
            image_size=(height, width),
            num_classes=self.settings.num_classes,
            channels=encoder.channels,
            root=self.root,
            seed=self.seed,
            value_range=self.value_range,
        )

    def check(self, subject: "Subject", data: "SegmentationData") -> None:
        """Refuse a folder that is taken."""
        with section("segment"):
            self.settings.check_folder()

    def baselines(self, data: "SegmentationData") -> dict[str, Score]:
        """The most frequent class everywhere: what a model must beat."""
        from ssl_blocks.evaluation.overlap import majority_baseline

        return {"most frequent class": _shown(majority_baseline(data))}

    def score(self, subject: "Subject", data: "SegmentationData") -> Score:
        """Overlap and share of right pixels on the test images."""
        from ssl_blocks.evaluation.dense import evaluate_segmentation

        own = self.settings
        found = evaluate_segmentation(
            subject.extractor,
            data,
            freeze=own.freeze,
            width=own.width,
            training=own,
            seed=self.seed,
            progress=True,
            **own.keeping(subject.name),
        )
        return _shown(found)


def _shown(found: "SegmentationScores") -> Score:
    return Score(found.as_dict(), f"{found.mean_iou:.1%}, {found.pixel_accuracy:.1%}")
