"""What an evaluation depends on: data, where it runs, and a section for every protocol."""

from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, create_model

from ssl_blocks.bounds import Count, Gigabytes, Number, Pixels, Seed
from ssl_blocks.engine.settings import StrictModel
from ssl_blocks.evaluation.protocol import Protocol


class LabelledDataConfig(StrictModel):
    """Labelled images, resized to the encoder's input."""

    name: str | None = Field(
        None, description="data set by name, or imagefolder:PATH; default: what the run was trained on"
    )
    root: Path = Field(Path(".data"), description="folder for downloads")
    max_train: Count | None = Field(None, description="this many training images, drawn class by class")
    max_test: Count | None = Field(None, description="this many test images, drawn class by class")
    value_range: tuple[Number, Number] | None = Field(
        None,
        description="values that are black and white; default: the run's on its own data; of more than 8 bits those "
        "that the encoder was trained with, else measured",
    )
    corrupt: Literal["error", "skip"] = Field("error", description="what to do about an image that cannot be read")
    max_memory_gib: Gigabytes = Field(8.0, description="most memory of decoded images; beyond, they are streamed")


class GeneralConfig(StrictModel):
    """Everything an evaluation depends on, but the protocols' own sections."""

    seed: Seed = Field(0, description="of random weights, of what is held out, and of everything trained")
    image_size: Pixels | None = Field(
        None, description="input size in pixels, positions resampled; default: the encoder's own"
    )
    pretrained: bool = Field(True, description="load the weights of a timm name; false: random ones")
    pixels: bool = Field(True, description="score raw pixels, too (where the encoder stays frozen)")
    random: bool = Field(True, description="score the same encoder with random weights, too (likewise)")
    attention: Literal["bidirectional", "causal", "both"] = Field(
        "bidirectional",
        description="who sees whom in the encoder: all, or in raster order those before, as it was pretrained; both: a "
        "row each (likewise)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the hardware has it")
    pictures: bool = Field(True, description="draw nearest neighbours, and features of places, beside the results")
    output: Path | None = Field(None, description="JSON file for the results; default: results.json of the run")
    data: LabelledDataConfig = LabelledDataConfig()


@cache
def config_class(*protocols: type[Protocol[Any, Any]]) -> type[GeneralConfig]:
    """The configuration with a section for each protocol, by its name, which must be free; made once."""
    sections: dict[str, Any] = {}
    for protocol in protocols:
        if protocol.name in {*GeneralConfig.model_fields, *sections}:
            raise ValueError(f"{protocol.__name__}.name={protocol.name!r} is taken: give the protocol another name")
        sections[protocol.name] = (protocol.Settings, protocol.Settings())
    return create_model("EvaluateConfig", __base__=GeneralConfig, **sections)
