"""Configuration: the sub-models that recipes share, and the parts and encoders they describe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

import ssl_blocks as sb
from ssl_blocks.engine.settings import CroppedDataConfig, OptimizerConfig, StrictModel, TrainerConfig, section


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

    def build(self, *, image_size: int | tuple[int, int], channels: int) -> sb.encoders.TimmViT:
        """Build the encoder for images of this size.

        Raises:
            ValueError: if sizes do not fit each other, the name is unknown, or pretrained weights cannot be loaded or
                are contradicted.
            FileNotFoundError: if the folder holds no model.
            TypeError: if the model is no plain vision transformer.
        """
        with section("encoder"):
            return sb.encoders.timm_vit(self.name, image_size=image_size, channels=channels, **self.arguments())


class DecoderConfig(StrictModel):
    """The decoder, thrown away after pretraining."""

    depth: PositiveInt = Field(4, description="number of layers")
    width: PositiveInt | None = Field(None, description="token width; default: the encoder's")
    heads: PositiveInt = Field(3, description="attention heads")
    positions: Literal["sincos", "learned"] = Field("sincos", description="position table of the queries")

    def build(self, encoder: sb.encoders.TokenEncoder) -> sb.SegmentDecoder:
        """Build the decoder that attends to this encoder's states.

        Raises:
            ValueError: if the width does not divide into heads.
        """
        with section("decoder"):
            return sb.SegmentDecoder(
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

    def build(self) -> sb.parts.SegmentPartitioner:
        """Build the partitioner."""
        return sb.TokenPartitioner()


class SquareSegments(StrictModel):
    """Squares of tokens, and squares of squares."""

    kind: Literal["square"] = "square"
    sides: tuple[PositiveInt, ...] = Field((2,), description="side of the squares in tokens, finest level first")

    def build(self) -> sb.parts.SegmentPartitioner:
        """Build the partitioner."""
        with section("segments"):
            return sb.SquarePartitioner(sides=self.sides)


class BlobSegments(StrictModel):
    """Irregular regions around random Gaussians."""

    kind: Literal["blob"] = "blob"
    counts: tuple[PositiveInt, ...] = Field((7,), description="number of Gaussians, finest level first")
    mean_range: tuple[float, float] = Field((-2.0, 2.0), description="lowest and highest mean; the grid spans -2..2")
    std_range: tuple[float, float] = Field((0.5, 1.5), description="lowest and highest standard deviation")
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
    seed: int = Field(0, ge=0, description="seed of weights, data order and draws")
    note: str = Field("", description="a remark printed before the final table")
    data: CroppedDataConfig = CroppedDataConfig()
    encoder: EncoderConfig = EncoderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()

    @field_validator("name")
    @classmethod
    def _is_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.+=-]+", name) or not name.strip("."):
            raise ValueError("must name a folder: letters, digits and . _ + = - only")
        if len(name.encode()) > MOST_NAME:
            raise ValueError(f"must name a folder: at most {MOST_NAME} bytes, not {len(name.encode())}")
        return name

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
            return sb.data.load(
                data,
                image_size=settings.image_size,
                channels=settings.channels,
                root=settings.root,
                max_train=settings.max_train,
                max_test=settings.max_test,
                seed=self.seed,
                storage=settings.storage,
                max_bytes=int(settings.max_memory_gib * 2**30),
                corrupt=settings.corrupt,
                value_range=settings.value_range,
            )

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
