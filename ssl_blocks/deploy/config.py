"""Options of the commands for finished runs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ssl_blocks.bounds import Batch, Count, Pixels
from ssl_blocks.engine.settings import StrictModel

Format = Literal["onnx", "torch", "timm", "safetensors", "state"]
InputSize = Annotated[
    Pixels | None, Field(description="input size in pixels, positions resampled; default: the encoder's own")
]


class OutputConfig(StrictModel):
    """Where to write."""

    output: Path = Field(description="what is written; -o for short")
    overwrite: bool = Field(False, description="replace what is there; without it nothing is ever replaced")


class ReadingConfig(OutputConfig):
    """How images are read and encoded."""

    root: Path = Field(Path(".data"), description="folder for downloads")
    batch_size: Batch = Field(64, description="images that are decoded and encoded at a time")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the hardware has it")
    corrupt: Literal["error", "skip"] = Field("error", description="what to do about an image that cannot be read")
    value_range: tuple[float, float] | None = Field(
        None,
        description="values that are black and white; default: of more than 8 bits those that the encoder was trained "
        "with, else measured",
    )


class EmbedConfig(ReadingConfig):
    """Features of images."""

    pooling: Literal["auto", "mean", "class_token", "both"] = Field(
        "auto", description="auto: as the encoder pools by itself; others for encoders of tokens"
    )
    layers: Count = Field(1, description="features of this many layers side by side, counted from the last")
    image_size: InputSize = None
    pretrained: bool = Field(True, description="load the weights of a timm name; false: random ones")


class PredictConfig(ReadingConfig):
    """Classes of images, or masks."""

    top_k: Count = Field(1, description="(classification) this many classes, the likeliest first")


class ExportConfig(OutputConfig):
    """A trained encoder or model as a file for elsewhere."""

    format: Format = Field(description="what to write")
    normalize: bool = Field(
        True, description="(onnx, torch) the program takes images in 0..1 and normalises them; false: they are already"
    )
    image_size: InputSize = None
    tolerance: float = Field(
        1e-4, gt=0, description="(onnx, torch) largest difference from the encoder, as a share of its largest feature"
    )


class PushConfig(StrictModel):
    """A repository on the Hugging Face hub."""

    private: bool = Field(True, description="whether only you see it")
    license: str | None = Field(None, description="of the weights, such as mit or cc-by-nc-4.0; default: none is named")
    datasets: tuple[str, ...] = Field((), description="names of data sets on the hub that it was trained on")
    tags: tuple[str, ...] = Field((), description="further tags of the card")
    message: str = Field("Upload an encoder of ssl_blocks", description="of the commit")
