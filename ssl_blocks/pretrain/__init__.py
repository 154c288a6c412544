"""Pretraining runs: configuration, run folder, results."""

from ssl_blocks.pretrain.config import (
    BlobSegments,
    DecoderConfig,
    EncoderConfig,
    RunConfig,
    SegmentsConfig,
    SquareSegments,
    TokenSegments,
)
from ssl_blocks.pretrain.module import PretrainModule
from ssl_blocks.pretrain.run import Run

__all__ = [
    "BlobSegments",
    "DecoderConfig",
    "EncoderConfig",
    "PretrainModule",
    "Run",
    "RunConfig",
    "SegmentsConfig",
    "SquareSegments",
    "TokenSegments",
]
