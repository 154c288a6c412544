"""RandSAC: self-supervision through random segments with autoregressive coding.

Paper     Hua, Tian, Ren, Raptis, Zhao, Sigal: "Self-supervision through Random Segments with Autoregressive Coding"
Idea      Cut the image into random segments. Read them in random order. Predict all tokens of the next segment at
          once from the segments read so far; each decoder layer attends to its own learned mixture of encoder layers.
Commands  ssl-blocks randsac --preset randsac_digits        smoke test, under 3 minutes on 2 CPU cores
          ssl-blocks randsac --preset randsac_cifar_small   CPU size, under 10 minutes on 2 CPU cores
          ssl-blocks randsac --help                         every option
Results   docs/results.md
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

import ssl_blocks as sb
from ssl_blocks.pretrain import (
    DecoderConfig,
    EncoderConfig,
    Recipe,
    RunConfig,
    SegmentsConfig,
    SquareSegments,
    TokenEncoderConfig,
)


class RandSACConfig(RunConfig):
    """Everything a RandSAC run depends on."""

    encoder: TokenEncoderConfig = Field(EncoderConfig(), description="the encoder to pretrain")  # type: ignore[assignment]
    segments: SegmentsConfig = Field(SquareSegments(), description="how the image is cut")
    in_order: bool = Field(False, description="read segments in raster order instead of a random one")
    decoder: DecoderConfig = DecoderConfig()
    learned_skips: bool = Field(True, description="mix encoder layers per decoder layer; otherwise only the last")
    two_stream: bool = Field(False, description="no decoder: queries go through the encoder (Table 10)")
    normalize_target: bool = Field(True, description="normalise each target patch (the paper's Table 10 and later)")

    def idle(self) -> dict[str, str]:
        """Without a decoder there is nothing to say about it."""
        return dict.fromkeys(("decoder", "learned_skips"), "two_stream=true") if self.two_stream else {}


def assemble(config: RandSACConfig, data: sb.data.ImageData) -> sb.SegmentPrediction:
    """Put the objective together from its parts."""
    channels, image_size = data.shape.channels, data.shape[1:]
    encoder = config.encoder.build(image_size=image_size, channels=channels)
    tokenizer = sb.PatchTokenizer(image_size=image_size, patch_size=encoder.patch, channels=channels)
    if config.two_stream:
        reader: sb.parts.Reader = sb.QueryReader(encoder.dim)
    else:
        depth = config.decoder.depth
        router = (
            sb.LearnedSkipRouter(encoder_depth=encoder.depth, decoder_depth=depth)
            if config.learned_skips
            else sb.LastLayerRouter(decoder_depth=depth)
        )
        reader = sb.DecoderReader(router, config.decoder.build(encoder))
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=config.segments.build(),
        serializer=sb.OrderedSerializer() if config.in_order else sb.RandomSerializer(),
        reader=reader,
        target=sb.PixelTarget(tokenizer, normalize=config.normalize_target),
    )


RECIPE = Recipe("randsac", RandSACConfig, assemble, presets=Path(__file__).parent / "presets")
