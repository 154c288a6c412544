"""MAE: masked autoencoders.

Paper     He, Chen, Xie, Li, Dollar, Girshick: "Masked Autoencoders Are Scalable Vision Learners"
Idea      Hide most patches of an image. Encode only those that are left. A small decoder gets them together with mask
          tokens in the place of the hidden ones, and predicts the pixels of those.
Commands  ssl-blocks mae --preset mae_cifar_small   CPU size, under 5 minutes on 2 CPU cores
          ssl-blocks mae --help                     every option
Results   docs/results.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

import ssl_blocks as sb
from ssl_blocks.bounds import Depth, Heads, Tokens, Width
from ssl_blocks.engine import StrictModel, section
from ssl_blocks.pretrain import EncoderConfig, Recipe, RunConfig, TokenEncoderConfig


class MaskTokenDecoderConfig(StrictModel):
    """The decoder, thrown away after pretraining."""

    depth: Depth = Field(8, description="number of blocks")
    width: Width = Field(512, description="token width")
    heads: Heads = Field(16, description="attention heads")
    positions: Literal["sincos", "learned"] = Field("sincos", description="position table")


class MAEConfig(RunConfig):
    """Everything an MAE run depends on."""

    encoder: TokenEncoderConfig = Field(EncoderConfig(), description="the encoder to pretrain")  # type: ignore[assignment]
    mask: Literal["random", "block", "grid"] = Field(
        "random", description="hide tokens at random, in blocks, or all but one of every square"
    )
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of the tokens that is hidden (random and block)")
    mask_period: Tokens = Field(2, description="side in tokens of the squares that keep one token (grid)")
    decoder: MaskTokenDecoderConfig = MaskTokenDecoderConfig()
    normalize_target: bool = Field(True, description="normalise each target patch")

    def idle(self) -> dict[str, str]:
        """A mask has a ratio or a period."""
        return {"mask_ratio" if self.mask == "grid" else "mask_period": f"mask={self.mask}"}


def choose_partitioner(config: MAEConfig) -> sb.parts.SegmentPartitioner:
    """Which tokens are hidden."""
    if config.mask == "grid":
        return sb.GridSubsetPartitioner(period=config.mask_period)
    if config.mask == "block":
        return sb.BlockSubsetPartitioner(hidden=config.mask_ratio)
    return sb.SubsetPartitioner(hidden=config.mask_ratio)


def assemble(config: MAEConfig, data: sb.data.ImageData) -> sb.SegmentPrediction:
    """Put the objective together from its parts."""
    channels, image_size = data.shape.channels, data.shape[1:]
    encoder = config.encoder.build(image_size=image_size, channels=channels)
    tokenizer = sb.PatchTokenizer(image_size=image_size, patch_size=encoder.patch, channels=channels)
    with section("decoder"):
        decoder = sb.MaskTokenDecoder(
            grid=encoder.grid,
            dim=config.decoder.width,
            depth=config.decoder.depth,
            num_heads=config.decoder.heads,
            memory_dim=encoder.dim,
            positions=config.decoder.positions,
        )
    return sb.mae(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=choose_partitioner(config),
        target=sb.PixelTarget(tokenizer, normalize=config.normalize_target),
        decoder=decoder,
    )


RECIPE = Recipe("mae", MAEConfig, assemble, presets=Path(__file__).parent / "presets")
