"""Configuration: the encoders that recipes train, by kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

import ssl_blocks as sb
from ssl_blocks.bounds import Depth, Heads, Tokens, Width
from ssl_blocks.engine.settings import StrictModel, section, values_of

PRETRAINED = "start from the weights of the name; default: whether it names weights (a tag, local-dir: or hf-hub:)"

# kinds that go with other recipes, and why
NOT_TOKENS = {
    "map": "its stages mix pixels of neighbouring patches, so hidden ones would leak: esvit trains it",
    "original": "it has no positions, so it cannot tell where to predict: apl trains it",
}
WITHOUT_POSITIONS = {
    "map": NOT_TOKENS["map"],
    **dict.fromkeys(
        ("torchvision", "transformers"), "its positions would give the places away: kind=vit is built without any"
    ),
}

# fields, and what timm's models call them
TIMM = {name: name for name in ("patch_size", "window_size", "depth", "positions", "class_token")} | {
    "width": "embed_dim",
    "heads": "num_heads",
    "stage_depths": "depths",
    "stage_heads": "num_heads",
    "drop_path": "drop_path_rate",
    "dropout": "proj_drop_rate",
}


class NamedEncoder(StrictModel):
    """What all encoders by name have."""

    name: str
    pretrained: bool | None = Field(None, description=PRETRAINED)
    kind: str

    @property
    def loads(self) -> bool:
        """Whether to start from weights: as told, or because the name is that of weights and not of a model alone."""
        return any(mark in self.name for mark in ":.") if self.pretrained is None else self.pretrained

    def for_timm(self) -> dict[str, Any]:
        """What is set, as timm's models call it."""
        given = {TIMM[name]: getattr(self, name) for name in type(self).model_fields if name in TIMM}
        return {name: value for name, value in given.items() if value is not None} | {"pretrained": self.loads}


class _SizedEncoder(NamedEncoder):
    patch_size: Tokens | None = Field(None, description="side of a patch in pixels; default: the model's")
    width: Width | None = Field(None, description="token width; default: the model's")
    depth: Depth | None = Field(None, description="number of blocks; default: the model's")
    heads: Heads | None = Field(None, description="attention heads; default: the model's")

    def _arguments(self) -> dict[str, Any]:
        return values_of(self, "patch_size", "width", "depth", "heads") | {"pretrained": self.loads}


class EncoderConfig(_SizedEncoder):
    """A vision transformer of timm: ViT, DeiT, CLIP, SigLIP, DINOv2, or with rotary positions EVA-02, DINOv3."""

    kind: Literal["vit"] = "vit"
    name: str = Field(
        "vit_tiny_patch16_224",
        description="timm model that gives all sizes not set here; with a tag, local-dir:FOLDER of an export or "
        "hf-hub:OWNER/NAME it starts from weights",
    )
    positions: Literal["sincos", "learned", "none"] | None = Field(
        None, description="position table; default: sincos, or the pretrained model's; rotary models have their own"
    )
    class_token: bool | None = Field(
        None,
        description="put a class token in front (it sees no patch while pretraining); default: false, or as the "
        "pretrained or the rotary model has it",
    )

    def build(self, *, image_size: int | tuple[int, int], channels: int, **more: Any) -> sb.encoders.TokenEncoder:
        """Build the encoder for images of this size; ``more`` goes to timm.

        Raises:
            ValueError: if sizes do not fit each other, the name is unknown, or pretrained weights cannot be loaded or
                are contradicted.
            FileNotFoundError: if the folder holds no model.
            TypeError: if the model is no plain vision transformer.
        """
        arguments = self.for_timm() | {"image_size": image_size, "channels": channels, **more}
        with section("encoder"):
            if not sb.encoders.is_eva(self.name):
                return sb.encoders.timm_vit(self.name, **arguments)
            if self.positions is not None:
                raise ValueError(
                    f"positions={self.positions!r} goes with tables, but {self.name!r} has rotary ones: leave it out"
                )
            return sb.encoders.timm_eva(self.name, **arguments)


class TorchvisionEncoderConfig(_SizedEncoder):
    """A vision transformer of torchvision, with its class token and learned positions."""

    kind: Literal["torchvision"] = "torchvision"
    name: str = Field(
        "vit_b_16", description="torchvision model that gives all sizes not set here, or local-dir:FOLDER of an export"
    )

    def build(self, *, image_size: int | tuple[int, int], channels: int) -> sb.encoders.TokenEncoder:
        """Build the encoder for images of this size; errors as of `torchvision_vit`."""
        with section("encoder"):
            return sb.encoders.torchvision_vit(self.name, image_size=image_size, channels=channels, **self._arguments())


class TransformersEncoderConfig(_SizedEncoder):
    """A vision transformer of Hugging Face transformers (extra hf), with its class token and positions."""

    kind: Literal["transformers"] = "transformers"
    name: str = Field(
        "vit",
        description="vit, dinov2, dinov2_with_registers or dinov3_vit; or weights: local-dir:FOLDER, hf-hub:OWNER/NAME",
    )

    def build(self, *, image_size: int | tuple[int, int], channels: int) -> sb.encoders.TokenEncoder:
        """Build the encoder for images of this size; errors as of `transformers_vit`."""
        with section("encoder"):
            return sb.encoders.transformers_vit(
                self.name, image_size=image_size, channels=channels, **self._arguments()
            )


TokenEncoderConfig = Annotated[
    EncoderConfig | TorchvisionEncoderConfig | TransformersEncoderConfig, Field(discriminator="kind")
]
