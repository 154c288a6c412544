"""RandSAC and DINO on one encoder.

Papers    Hua et al.: "Self-supervision through Random Segments with Autoregressive Coding (RandSAC)", which names the
          combination with contrastive or distillation losses as future work
          Caron et al.: "Emerging Properties in Self-Supervised Vision Transformers" (DINO)
Idea      Every image is cut into crops. The first large one is also read segment by segment, each predicted from those
          before it. The sum of both losses trains one vision transformer; DINO's teacher is its moving average.
Commands  ssl-blocks combined --preset combined_cifar_small   CPU size, under 5 minutes on 2 CPU cores
          ssl-blocks combined --help                          every option
Results   docs/results.md
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import Field

import ssl_blocks as sb
from ssl_blocks.bounds import Classes, Crops, NotNegative, Pixels, Width
from ssl_blocks.engine import DataConfig, StrictModel, section
from ssl_blocks.engine.settings import values_of
from ssl_blocks.pretrain import (
    DecoderConfig,
    EncoderConfig,
    Recipe,
    RunConfig,
    SegmentsConfig,
    SquareSegments,
    TokenEncoderConfig,
)


class WeightsConfig(StrictModel):
    """How much each loss counts; a loss of weight 0 is computed and trains nothing."""

    randsac: NotNegative = Field(1.0, description="of the prediction of segments")
    dino: NotNegative = Field(0.1, description="of the distillation between views")


class DinoConfig(StrictModel):
    """Distillation between views."""

    out_dim: Classes = Field(1024, description="classes of the heads")
    hidden_dim: Width = Field(512, description="width of the heads' hidden layers")
    bottleneck_dim: Width = Field(64, description="width in front of the heads' last layer")
    local_size: Pixels = Field(16, description="side of the small crops in pixels, a multiple of the patch")
    num_local: Crops = Field(2, description="number of small crops")


class CombinedConfig(RunConfig):
    """Everything such a run depends on."""

    data: DataConfig = DataConfig()  # type: ignore[assignment] # crops have scales of their own
    encoder: TokenEncoderConfig = Field(EncoderConfig(), description="the encoder to pretrain")  # type: ignore[assignment]
    segments: SegmentsConfig = Field(SquareSegments(), description="how the first large crop is cut")
    decoder: DecoderConfig = DecoderConfig()
    normalize_target: bool = Field(True, description="normalise each target patch")
    dino: DinoConfig = DinoConfig()
    weights: WeightsConfig = WeightsConfig()

    def augmentation(
        self, shape: sb.data.ImageShape, mean: Sequence[float], std: Sequence[float]
    ) -> sb.data.Augmentation:
        """Two large and several small crops in changed colours."""
        with section("dino"):
            return sb.data.MultiCrop(
                (shape.height, shape.width),
                self.dino.local_size,
                num_local=self.dino.num_local,
                mean=mean,
                std=std,
                flip=self.data.flip,
            )


def assemble(config: CombinedConfig, data: sb.data.ImageData) -> sb.WeightedSum:
    """Put the objective together from its parts."""
    channels, image_size = data.shape.channels, data.shape[1:]
    encoder = config.encoder.build(image_size=image_size, channels=channels)
    tokenizer = sb.PatchTokenizer(image_size=image_size, patch_size=encoder.patch, channels=channels)
    randsac = sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=config.segments.build(),
        target=sb.PixelTarget(tokenizer, normalize=config.normalize_target),
        reader=sb.DecoderReader(
            sb.LearnedSkipRouter(encoder_depth=encoder.depth, decoder_depth=config.decoder.depth),
            config.decoder.build(encoder),
        ),
    )
    with section("dino"):
        dino = sb.ViewRegionDistillation(
            encoder=sb.encoders.TokenRegions(encoder),
            out_dim=config.dino.out_dim,
            head=partial(sb.dino_head, hidden_dim=config.dino.hidden_dim, bottleneck_dim=config.dino.bottleneck_dim),
            region_weight=0.0,
        )
    with section("weights"):
        return sb.WeightedSum({"randsac": randsac, "dino": dino}, weights=values_of(config.weights, "randsac", "dino"))


RECIPE = Recipe("combined", CombinedConfig, assemble, presets=Path(__file__).parent / "presets")
