"""What an evaluation depends on: data, protocols, and where it runs."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ssl_blocks.engine.settings import StrictModel
from ssl_blocks.evaluation import FinetuneSettings, LinearSettings, SegmentationTraining


class LabelledDataConfig(StrictModel):
    """Labelled images, resized to the encoder's input."""

    name: str | None = Field(
        None, description="data set by name, or imagefolder:PATH; default: what the run was trained on"
    )
    root: Path = Field(Path(".data"), description="folder for downloads")
    max_train: PositiveInt | None = Field(None, description="this many training images, drawn class by class")
    max_test: PositiveInt | None = Field(None, description="this many test images, drawn class by class")
    max_memory_gib: PositiveFloat = Field(8.0, description="most memory of decoded images; beyond, they are streamed")


class KnnConfig(StrictModel):
    """Nearest neighbours by cosine similarity."""

    k: PositiveInt = Field(20, description="number of neighbours that vote")
    temperature: PositiveFloat = Field(0.07, description="the smaller, the more the nearest outweigh the others")


class ProbeConfig(StrictModel):
    """A linear classifier on frozen features."""

    solver: Literal["lars", "logistic"] = Field("lars", description="LARS, or logistic regression to its optimum")
    lrs: tuple[PositiveFloat, ...] | None = Field(
        None,
        description="(lars) base rates, of which one is chosen on images held out of train; default: four around the "
        "paper's 0.1, scaled to the number of images",
    )
    batch_size: PositiveInt | None = Field(
        None, description="(lars) images per step; default: the paper's 16384, or a 16th of train"
    )
    epochs: PositiveInt = Field(90, description="(lars) passes over train")
    warmup_epochs: NonNegativeFloat = Field(10.0, description="(lars) of the linear warm-up")
    weight_decay: NonNegativeFloat = Field(0.0, description="(lars) of the weights")
    normalize: bool = Field(True, description="(lars) batch norm without scale and shift in front")
    augment: bool = Field(False, description="(lars) encode cropped and mirrored images anew in every epoch")
    cs: tuple[PositiveFloat, ...] = Field(
        (0.01, 0.1, 1.0), description="(logistic) inverse penalties; one is chosen on images held out of train"
    )

    def settings(self, num_images: int, seed: int) -> LinearSettings:
        """How LARS trains the probe on so many images.

        Raises:
            ValueError: if a number is out of range.
        """
        names = ("lrs", "batch_size", "epochs", "warmup_epochs", "weight_decay", "normalize")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return LinearSettings.for_images(num_images, **given, seed=seed)


class FewshotConfig(StrictModel):
    """A logistic regression on few labels per class."""

    shots: PositiveInt = Field(10, description="labels per class")
    seeds: tuple[NonNegativeInt, ...] = Field((0, 1, 2), description="each draws labels of its own")
    finetune: bool = Field(False, description="fine-tune on these labels, by the options of finetune, too")


class FinetuneConfig(StrictModel):
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

    def settings(self, seed: int) -> FinetuneSettings:
        """How the encoder is fine-tuned.

        Raises:
            ValueError: if a number is out of range.
        """
        return FinetuneSettings(**_without(self, "from_random"), seed=seed)


class SegmentConfig(StrictModel):
    """A pyramid and a small head for segmentation."""

    data: str = Field("shapes", description="shapes (generated), voc, voc:PATH or maskfolder:PATH")
    num_classes: PositiveInt | None = Field(None, description="of a mask folder")
    freeze: bool = Field(False, description="train pyramid and head only")
    width: PositiveInt = Field(64, description="channels of maps and head")
    epochs: PositiveInt = Field(20, description="passes over train")
    batch_size: PositiveInt = Field(16, description="images per step")
    lr: PositiveFloat = Field(5e-4, description="peak learning rate")
    from_random: bool = Field(False, description="train from random weights, too")

    def training(self) -> SegmentationTraining:
        """How the model is trained.

        Raises:
            ValueError: if a number is out of range.
        """
        return SegmentationTraining(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr)


class EvaluateConfig(StrictModel):
    """Everything an evaluation depends on."""

    seed: int = Field(0, ge=0, description="of random weights, of what is held out, and of everything trained")
    image_size: PositiveInt | None = Field(
        None, description="input size in pixels, positions resampled; default: the encoder's own"
    )
    pretrained: bool = Field(True, description="load the weights of a timm name; false: random ones")
    pixels: bool = Field(True, description="score raw pixels, too (knn, probe, fewshot)")
    random: bool = Field(True, description="score the same encoder with random weights, too (knn, probe, fewshot)")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the hardware has it")
    output: Path | None = Field(None, description="JSON file for the results; default: results.json of the run")
    data: LabelledDataConfig = LabelledDataConfig()
    knn: KnnConfig = KnnConfig()
    probe: ProbeConfig = ProbeConfig()
    fewshot: FewshotConfig = FewshotConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    segment: SegmentConfig = SegmentConfig()


def _without(model: StrictModel, *names: str) -> dict[str, Any]:
    return {name: value for name, value in model if name not in names}
