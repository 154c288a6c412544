"""Pretraining runs: configuration, run folder, results."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.pretrain.badsteps import dumped_config as dumped_config, replay as replay
    from ssl_blocks.pretrain.config import (
        BlobSegments as BlobSegments,
        DecoderConfig as DecoderConfig,
        RunConfig as RunConfig,
        SegmentsConfig as SegmentsConfig,
        SquareSegments as SquareSegments,
        TokenSegments as TokenSegments,
    )
    from ssl_blocks.pretrain.dryrun import describe as describe
    from ssl_blocks.pretrain.encoders import (
        EncoderConfig as EncoderConfig,
        TokenEncoderConfig as TokenEncoderConfig,
        TorchvisionEncoderConfig as TorchvisionEncoderConfig,
        TransformersEncoderConfig as TransformersEncoderConfig,
    )
    from ssl_blocks.pretrain.module import PretrainModule as PretrainModule
    from ssl_blocks.pretrain.recipe import Recipe as Recipe
    from ssl_blocks.pretrain.resume import run_folder as run_folder, stored_config as stored_config
    from ssl_blocks.pretrain.run import Run as Run
else:
    __getattr__, __dir__ = lazily(__name__, __file__)
