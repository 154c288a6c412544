"""SAIM: stochastic autoregressive image modeling.

Paper     Qi, Yang, Zhu, Liu, Wu, Zhao, Li:
          "Exploring Stochastic Autoregressive Image Modeling for Visual Representation"
Idea      Read the patches of an image one by one, in random order. Two streams run side by side: content, which sees
          itself and what was read before; and queries, which start as a position, see only the content read before, and
          after every block ask the content once more. Each query predicts its patch of the blurred image.
Commands  ssl-blocks saim --preset saim_cifar_small   CPU size, under 5 minutes on 2 CPU cores
          ssl-blocks saim --help                      every option
Results   docs/results.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

import ssl_blocks as sb
from ssl_blocks.bounds import Depth
from ssl_blocks.pretrain import EncoderConfig, Recipe, RunConfig, TorchvisionEncoderConfig, TransformersEncoderConfig


class ClassTokenEncoderConfig(EncoderConfig):
    """A vision transformer of timm with a class token."""

    class_token: bool = Field(True, description="must be true: the first patch is predicted from this token alone")

    @field_validator("class_token")
    @classmethod
    def _is_there(cls, class_token: bool) -> bool:
        if not class_token:
            raise ValueError("must be true: the first patch is predicted from the class token alone")
        return class_token


PrefixEncoderConfig = Annotated[
    ClassTokenEncoderConfig | TorchvisionEncoderConfig | TransformersEncoderConfig, Field(discriminator="kind")
]


class SAIMConfig(RunConfig):
    """Everything a SAIM run depends on."""

    encoder: PrefixEncoderConfig = Field(ClassTokenEncoderConfig(), description="the encoder to pretrain")  # type: ignore[assignment]
    query_depth: Depth | None = Field(
        None, description="query blocks, which must divide encoder.depth; default: one per encoder block"
    )
    share_weights: bool = Field(False, description="run the queries through the encoder's own blocks")
    blur: tuple[int, float] = Field(
        (9, 1.0), description="size in pixels and deviation of the Gaussian that blurs the target; 1,1 blurs nothing"
    )
    normalize_target: bool = Field(True, description="normalise each target patch")
    loss: Literal["mse", "l1"] = Field("mse", description="squared or absolute error of pixels")
    head: Literal["mlp", "linear"] = Field("mlp", description="what turns a query into pixels")

    @model_validator(mode="after")
    def _weights_are_in_one_place(self) -> "SAIMConfig":
        if self.share_weights and self.trainer.strategy == "fsdp":
            raise ValueError("share_weights=true needs trainer.strategy=ddp: fsdp gathers a block for content only")
        return self


def assemble(config: SAIMConfig, data: sb.data.ImageData) -> sb.SegmentPrediction:
    """Put the objective together from its parts."""
    from timm.layers import Mlp  # not above: --help would wait for them
    from torch import nn

    channels, image_size = data.shape.channels, data.shape[1:]
    encoder = config.encoder.build(image_size=image_size, channels=channels)
    tokenizer = sb.PatchTokenizer(image_size=image_size, patch_size=encoder.patch, channels=channels)
    target = sb.PixelTarget(tokenizer, normalize=config.normalize_target, blur=config.blur)
    depth = config.query_depth or encoder.depth
    if depth > encoder.depth or encoder.depth % depth:
        raise ValueError(f"query_depth={depth} must divide the encoder's depth, {encoder.depth}")
    width = encoder.dim
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.TokenPartitioner(),
        serializer=sb.RandomSerializer(),
        target=target,
        loss=sb.predicted_l1 if config.loss == "l1" else sb.predicted_mse,
        reader=sb.DecoderReader(
            sb.MatchedRouter(encoder_depth=encoder.depth, decoder_depth=depth), build_decoder(config, encoder, depth)
        ),
        head=Mlp(width, 4 * width, target.dim) if config.head == "mlp" else nn.Linear(width, target.dim),
        predict_first=True,
    )


def build_decoder(config: SAIMConfig, encoder: sb.encoders.TokenEncoder, depth: int) -> sb.QueryStreamDecoder:
    """The query stream: blocks like the encoder's, or the encoder's own."""
    if config.share_weights:
        return sb.QueryStreamDecoder.sharing(encoder, depth=depth)
    return sb.QueryStreamDecoder(
        grid=encoder.grid, dim=encoder.dim, depth=depth, num_heads=sb.encoders.num_heads(encoder), norm=encoder.norm
    )


RECIPE = Recipe("saim", SAIMConfig, assemble, presets=Path(__file__).parent / "presets")
