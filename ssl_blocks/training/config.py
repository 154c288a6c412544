"""Configuration: the sub-models that recipes share, and the parts and encoders they describe."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ssl_blocks.data import Augmentation, ImageShape, RandomResizedCropFlip
from ssl_blocks.decoders import SegmentDecoder
from ssl_blocks.encoders import TimmViT, TokenEncoder, timm_vit
from ssl_blocks.partitioners import (
    BlobPartitioner,
    SegmentPartitioner,
    ShuffledPartitioner,
    SquarePartitioner,
    TokenPartitioner,
)


@contextmanager
def section(name: str) -> Iterator[None]:
    """Say in errors which section of the configuration they are about: several have a ``name``."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        kinds = (FileNotFoundError, ValueError, TypeError, OSError)
        kind = next(k for k in kinds if isinstance(error, k))
        raise kind(f"{name}: {error}") from error


class StrictModel(BaseModel):
    """A configuration in which an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EncoderConfig(StrictModel):
    """The vision transformer to pretrain, built by timm."""

    name: str = Field("vit_tiny_patch16_224", description="timm model that gives all sizes not set here")
    pretrained: bool = Field(
        False, description="start from the weights of the name: a tag of timm, or local-dir:FOLDER of an export"
    )
    patch_size: PositiveInt | None = Field(
        None, description="side of a patch in pixels; default: 4, or the pretrained model's"
    )
    width: PositiveInt | None = Field(None, description="token width; default: the model's")
    depth: PositiveInt | None = Field(None, description="number of blocks; default: the model's")
    heads: PositiveInt | None = Field(None, description="attention heads; default: the model's")
    positions: Literal["sincos", "learned", "none"] | None = Field(
        None, description="position table; default: sincos, or the pretrained model's"
    )
    class_token: bool | None = Field(
        None,
        description="put a class token in front (it sees no patch while pretraining); default: false, or as the "
        "pretrained model has it",
    )

    def arguments(self) -> dict[str, Any]:
        """What `timm_vit` is to be told; what is not said here is left to the pretrained model."""
        given = {
            "patch_size": self.patch_size or (None if self.pretrained else 4),
            "positions": self.positions,
            "class_token": self.class_token,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
        }
        return {"pretrained": self.pretrained} | {name: value for name, value in given.items() if value is not None}

    def build(self, *, image_size: int | tuple[int, int], channels: int) -> TimmViT:
        """Build the encoder for images of this size.

        Raises:
            ValueError: if sizes do not fit each other, the name is unknown, or pretrained weights cannot be loaded or
                are contradicted.
            FileNotFoundError: if the folder holds no model.
            TypeError: if the model is no plain vision transformer.
        """
        with section("encoder"):
            return timm_vit(self.name, image_size=image_size, channels=channels, **self.arguments())


class DecoderConfig(StrictModel):
    """The decoder, thrown away after pretraining."""

    depth: PositiveInt = Field(4, description="number of layers")
    width: PositiveInt | None = Field(None, description="token width; default: the encoder's")
    heads: PositiveInt = Field(3, description="attention heads")
    positions: Literal["sincos", "learned"] = Field("sincos", description="position table of the queries")

    def build(self, encoder: TokenEncoder) -> SegmentDecoder:
        """Build the decoder that attends to this encoder's states.

        Raises:
            ValueError: if the width does not divide into heads.
        """
        with section("decoder"):
            return SegmentDecoder(
                grid=encoder.grid,
                dim=self.width or encoder.dim,
                depth=self.depth,
                num_heads=self.heads,
                memory_dim=encoder.dim,
                positions=self.positions,
            )


class TokenSegments(StrictModel):
    """Every token is a segment of its own."""

    kind: Literal["token"] = "token"

    def build(self) -> SegmentPartitioner:
        """Build the partitioner."""
        return TokenPartitioner()


class SquareSegments(StrictModel):
    """Squares of tokens, and squares of squares."""

    kind: Literal["square"] = "square"
    sides: tuple[PositiveInt, ...] = Field((2,), description="side of the squares in tokens, finest level first")

    def build(self) -> SegmentPartitioner:
        """Build the partitioner."""
        with section("segments"):
            return SquarePartitioner(sides=self.sides)


class BlobSegments(StrictModel):
    """Irregular regions around random Gaussians."""

    kind: Literal["blob"] = "blob"
    counts: tuple[PositiveInt, ...] = Field((7,), description="number of Gaussians, finest level first")
    mean_range: tuple[float, float] = Field((-2.0, 2.0), description="lowest and highest mean; the grid spans -2..2")
    std_range: tuple[float, float] = Field((0.5, 1.5), description="lowest and highest standard deviation")
    shuffled: bool = Field(False, description="scatter the tokens of the blobs: the incoherent control")

    def build(self) -> SegmentPartitioner:
        """Build the partitioner."""
        with section("segments"):
            blobs = BlobPartitioner(counts=self.counts, mean_range=self.mean_range, std_range=self.std_range)
        return ShuffledPartitioner(base=blobs) if self.shuffled else blobs


SegmentsConfig = Annotated[TokenSegments | SquareSegments | BlobSegments, Field(discriminator="kind")]


class DataConfig(StrictModel):
    """Where images come from, and how they are varied."""

    name: str = Field("digits", description="data set by name, or imagefolder:PATH")
    image_size: PositiveInt | None = Field(None, description="side in pixels; default: the images' own")
    channels: PositiveInt | None = Field(
        None, description="1 makes images grey; default: the data set's own, 3 for files"
    )
    root: Path = Field(Path(".data"), description="folder for downloads")
    max_train: PositiveInt | None = Field(None, description="train on this many images, drawn class by class")
    max_test: PositiveInt | None = Field(None, description="test on this many images, drawn class by class")
    crop_scale: tuple[float, float] = Field((0.2, 1.0), description="share of the area that a random crop keeps")
    flip: bool = Field(True, description="mirror half of the images")
    storage: Literal["auto", "memory", "stream"] = Field(
        "auto", description="decode once into memory, or anew every epoch; auto: memory where max_memory_gib suffices"
    )
    max_memory_gib: PositiveFloat = Field(8.0, description="most memory that decoded images may take, per process")
    workers: NonNegativeInt | None = Field(
        None, description="decoding processes of each process; default: its share of cores"
    )
    corrupt: Literal["error", "skip"] = Field("error", description="what to do about an image that cannot be read")

    @field_validator("crop_scale")
    @classmethod
    def _shares(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("must be (smallest, largest), both above 0 and at most 1")
        return scale


class OptimizerConfig(StrictModel):
    """AdamW with a linear warm-up and a cosine to ``min_lr``, step by step."""

    base_lr: PositiveFloat = Field(1e-3, description="learning rate per 256 images of a batch")
    batch_size: PositiveInt = Field(256, description="images per step, over all processes and accumulated batches")
    accumulate: PositiveInt = Field(1, description="take a step's images in this many parts, to save memory")
    weight_decay: float = Field(0.05, ge=0, description="not applied to norms, biases, positions and tokens")
    weight_decay_end: float | None = Field(
        None, ge=0, description="weight decay at the end, reached along half a cosine; default: constant"
    )
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's decay rates")
    warmup_epochs: float = Field(10.0, ge=0, description="epochs of linear warm-up")
    warmup_start: float = Field(0.0, ge=0, le=1, description="share of the peak at which the warm-up begins")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end")
    clip_grad: PositiveFloat | None = Field(None, description="largest gradient norm; default: no clipping")

    @field_validator("betas")
    @classmethod
    def _decay_rates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("must be two numbers of at least 0 and below 1")
        return betas

    @model_validator(mode="after")
    def _falls(self) -> "OptimizerConfig":
        if self.min_lr > self.lr:
            raise ValueError(
                f"optimizer.min_lr={self.min_lr:g} must not exceed the peak rate {self.lr:g}, which is "
                "optimizer.base_lr * optimizer.batch_size / 256"
            )
        return self

    @property
    def lr(self) -> float:
        """Peak learning rate: the base rate scaled linearly with the batch (MAE)."""
        return self.base_lr * self.batch_size / 256


class TrainerConfig(StrictModel):
    """How long, how precisely and on what."""

    epochs: PositiveInt = Field(100, description="passes over the training images")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the hardware has it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    devices: PositiveInt | None = Field(None, description="processes on this machine; default: torchrun's, else 1")
    num_nodes: PositiveInt | None = Field(None, description="machines; default: torchrun's, else 1")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="several processes: whole copies of the model (ddp), or its blocks in shards (fsdp)"
    )
    compile: bool = Field(False, description="compile the objective (worth it on a GPU)")
    knn_every: PositiveInt | None = Field(None, description="kNN on the test images every so many epochs")
    knn_bank: PositiveInt = Field(5000, description="training images that kNN while training looks at")
    checkpoint_every: PositiveFloat = Field(1.0, description="epochs between checkpoints; 0.5 is twice an epoch")
    keep_checkpoints: PositiveInt = Field(2, description="how many of the newest checkpoints are kept")


class RunConfig(StrictModel):
    """What every recipe's configuration has."""

    name: str = Field(description="the run's folder below output_dir")
    output_dir: Path = Field(Path("runs"), description="folder of all runs")
    seed: int = Field(0, ge=0, description="seed of weights, data order and draws")
    note: str = Field("", description="a remark printed before the final table")
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()

    @field_validator("name")
    @classmethod
    def _is_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.+=-]+", name) or not name.strip("."):
            raise ValueError("must name a folder: letters, digits and . _ + = - only")
        return name

    def augmentation(self, shape: ImageShape, mean: Sequence[float], std: Sequence[float]) -> Augmentation:
        """Build what varies the training images; a recipe whose objective takes `Views` returns a `MultiCrop` instead.

        Args:
            shape: of the images as they are held or decoded.
            mean: with which they are normalised, one number per channel.
            std: the same.

        Raises:
            ValueError: if a range is none.
        """
        with section("data.crop_scale"):
            return RandomResizedCropFlip((shape.height, shape.width), scale=self.data.crop_scale, flip=self.data.flip)

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.output_dir / self.name
