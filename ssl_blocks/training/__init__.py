"""Pretraining runs: configuration, engine, run folder, export."""

from ssl_blocks.training.cli import load_config, main
from ssl_blocks.training.config import (
    BlobSegments,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    OptimizerConfig,
    RunConfig,
    SegmentsConfig,
    SquareSegments,
    StrictModel,
    TokenSegments,
    TrainerConfig,
    section,
)
from ssl_blocks.training.export import export_encoder
from ssl_blocks.training.module import PretrainModule
from ssl_blocks.training.optimizers import adamw, parameter_groups, warmup_cosine
from ssl_blocks.training.run import Run

__all__ = [
    "BlobSegments",
    "DataConfig",
    "DecoderConfig",
    "EncoderConfig",
    "OptimizerConfig",
    "PretrainModule",
    "Run",
    "RunConfig",
    "SegmentsConfig",
    "SquareSegments",
    "StrictModel",
    "TokenSegments",
    "TrainerConfig",
    "adamw",
    "export_encoder",
    "load_config",
    "main",
    "parameter_groups",
    "section",
    "warmup_cosine",
]
