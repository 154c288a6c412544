"""Configuration: the sub-models that recipes share, and the parts and encoders they describe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

import ssl_blocks as sb
from ssl_blocks.bounds import Clusters, Depth, Heads, Number, Seed, Tokens, Width
from ssl_blocks.engine.settings import (
    CroppedDataConfig,
    OptimizerConfig,
    StrictModel,
    TrainerConfig,
    section,
    values_of,
)
from ssl_blocks.pretrain.encoders import NOT_TOKENS, EncoderConfig


class DecoderConfig(StrictModel):
    """The decoder, thrown away after pretraining."""

    depth: Depth = Field(4, description="number of layers")
    width: Width | None = Field(None, description="token width; default: the encoder's")
    heads: Heads | None = Field(None, description="attention heads; default: the encoder's")
    positions: Literal["sincos", "learned"] = Field("sincos", description="position table of the queries")
    activation: Literal["gelu", "relu"] = Field("gelu", description="of the MLPs; relu as in RandSAC's pseudocode")

    def build(self, encoder: sb.encoders.TokenEncoder) -> sb.SegmentDecoder:
        """Build the decoder that attends to this encoder's states.

        Raises:
            ValueError: if the width does not divide into heads.
        """
        from torch import nn  # not above: --help would wait for it

        with section("decoder"):
            return sb.SegmentDecoder(
                grid=encoder.grid,
                dim=self.width or encoder.dim,
                depth=self.depth,
                num_heads=self.heads or sb.encoders.num_heads(encoder),
                memory_dim=encoder.dim,
                positions=self.positions,
                act_layer=nn.ReLU if self.activation == "relu" else nn.GELU,
            )


class TokenSegments(StrictModel):
    """Every token is a segment of its own."""

    kind: Literal["token"] = "token"

    def build(self) -> sb.parts.SegmentPartitioner:
        """Build the partitioner."""
        return sb.TokenPartitioner()


class SquareSegments(StrictModel):
    """Squares of tokens, and squares of squares."""

    kind: Literal["square"] = "square"
    sides: tuple[Tokens, ...] = Field((2,), description="side of the squares in tokens, finest level first")

    def build(self) -> sb.parts.SegmentPartitioner:
        """Build the partitioner."""
        with section("segments"):
            return sb.SquarePartitioner(sides=self.sides)


class BlobSegments(StrictModel):
    """Irregular regions around random Gaussians."""

    kind: Literal["blob"] = "blob"
    counts: tuple[Clusters, ...] = Field((7,), description="number of Gaussians, finest level first")
    mean_range: tuple[Number, Number] = Field((-2.0, 2.0), description="lowest and highest mean; the grid spans -2..2")
    std_range: tuple[Number, Number] = Field((0.5, 1.5), description="lowest and highest standard deviation")
    shuffled: bool = Field(False, description="scatter the tokens of the blobs: the incoherent control")

    def build(self) -> sb.parts.SegmentPartitioner:
        """Build the partitioner."""
        with section("segments"):
            blobs = sb.BlobPartitioner(counts=self.counts, mean_range=self.mean_range, std_range=self.std_range)
        return sb.ShuffledPartitioner(base=blobs) if self.shuffled else blobs


def _check_shape(shape: sb.data.ImageShape, image_size: int | tuple[int, int] | None, channels: int | None) -> None:
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    wanted = (channels or shape.channels, *(size or shape[1:]))
    if tuple(shape) != wanted:
        raise ValueError(
            f"loaded images of {'x'.join(map(str, shape))} must be {'x'.join(map(str, wanted))}, as image_size and "
            "channels are configured"
        )


MOST_NAME = 200  # systems take 255, suffixes included

SegmentsConfig = Annotated[TokenSegments | SquareSegments | BlobSegments, Field(discriminator="kind")]


class RunConfig(StrictModel):
    """What every recipe's configuration has."""

    name: str = Field(description="the run's folder below output_dir")
    output_dir: Path = Field(Path("runs"), description="folder of all runs")
    seed: Seed = Field(0, description="seed of weights, data order and draws")
    note: str = Field("", description="a remark printed before the final table")
    start: Path | None = Field(
        None, description="begin with all weights of a folder that `ssl-blocks export RUN --format state` wrote"
    )
    data: CroppedDataConfig = CroppedDataConfig()
    encoder: EncoderConfig = EncoderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()
    untrainable: ClassVar[dict[str, str]] = NOT_TOKENS  # kinds of encoders, and why

    @field_validator("encoder", mode="before")
    @classmethod
    def _can_be_trained(cls, given: Any) -> Any:
        kind = given.get("kind") if isinstance(given, dict) else None
        if kind in cls.untrainable:
            raise ValueError(f"encoder.kind={kind} cannot be trained by this recipe: {cls.untrainable[kind]}")
        return given

    @field_validator("name")
    @classmethod
    def _is_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.+=-]+", name) or not name.strip("."):
            raise ValueError("must name a folder: letters, digits and . _ + = - only")
        if len(name.encode()) > MOST_NAME:
            raise ValueError(f"must name a folder: at most {MOST_NAME} bytes, not {len(name.encode())}")
        return name

    @model_validator(mode="after")
    def _blocks_can_be_dealt_out(self) -> RunConfig:
        if str(self.encoder.kind) == "torchvision" and self.trainer.strategy == "fsdp":
            raise ValueError(
                "encoder.kind=torchvision needs trainer.strategy=ddp: fsdp gathers a block when it is called, and its "
                "blocks are computed from their parts"
            )
        return self

    def load_data(self) -> sb.data.ImageData:
        """Load the images; override it to bring data of your own, which the section ``data`` need not describe.

        Raises:
            FileNotFoundError: if the data is not there and cannot be downloaded.
            ValueError: if the data cannot be used.
        """
        return self.load_given(self.data.name)

    def load_given(self, data: Any) -> sb.data.ImageData:
        """Load images that are given in code, or named, as the section ``data`` has it; loaded ones stay as they are.

        Args:
            data: what `ssl_blocks.data.load` takes, or `ssl_blocks.data.ImageData`.

        Raises:
            FileNotFoundError: if the data is not there and cannot be downloaded.
            TypeError: if it is no data.
            ValueError: if the data cannot be used, or loaded images are not as configured.
        """
        settings = self.data
        with section("data"):
            if isinstance(data, sb.data.ImageData):
                _check_shape(data.shape, settings.image_size, settings.channels)
                return data
            names = ("image_size", "channels", "root", "max_train", "max_test", "storage", "corrupt", "value_range")
            most = int(settings.max_memory_gib * 2**30)
            return sb.data.load(data, seed=self.seed, max_bytes=most, **values_of(settings, *names))

    def augmentation(
        self, shape: sb.data.ImageShape, mean: Sequence[float], std: Sequence[float]
    ) -> sb.data.Augmentation:
        """Build what varies the training images; a recipe whose objective takes `Views` returns a `MultiCrop` instead.

        Args:
            shape: of the images as they are held or decoded.
            mean: with which they are normalised, one number per channel.
            std: the same.

        Raises:
            ValueError: if a range is none.
        """
        with section("data.crop_scale"):
            return sb.data.RandomResizedCropFlip(
                (shape.height, shape.width), scale=self.data.crop_scale, flip=self.data.flip
            )

    def idle(self) -> dict[str, str]:
        """Options that have no effect, by dotted name, and the choice that leaves them without; they are refused."""
        return {}

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.output_dir / self.name
