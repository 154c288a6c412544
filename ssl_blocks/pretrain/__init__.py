"""Pretraining runs: configuration, run folder, results."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.pretrain.badsteps import dumped_config, replay
    from ssl_blocks.pretrain.config import (
        BlobSegments,
        DecoderConfig,
        RunConfig,
        SegmentsConfig,
        SquareSegments,
        TokenSegments,
    )
    from ssl_blocks.pretrain.dryrun import describe
    from ssl_blocks.pretrain.encoders import (
        EncoderConfig,
        TokenEncoderConfig,
        TorchvisionEncoderConfig,
        TransformersEncoderConfig,
    )
    from ssl_blocks.pretrain.module import PretrainModule
    from ssl_blocks.pretrain.recipe import Recipe
    from ssl_blocks.pretrain.resume import run_folder, stored_config
    from ssl_blocks.pretrain.run import Run
else:
    __getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "BlobSegments",
    "DecoderConfig",
    "EncoderConfig",
    "PretrainModule",
    "Recipe",
    "Run",
    "RunConfig",
    "SegmentsConfig",
    "SquareSegments",
    "TokenEncoderConfig",
    "TokenSegments",
    "TorchvisionEncoderConfig",
    "TransformersEncoderConfig",
    "describe",
    "dumped_config",
    "replay",
    "run_folder",
    "stored_config",
]
