"""The loop that training runs on: settings, checkpoints, processes, signals, logs."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.engine.optimizers import adamw, parameter_groups, warmup_cosine
    from ssl_blocks.engine.settings import (
        CroppedDataConfig,
        DataConfig,
        OptimizerConfig,
        StrictModel,
        TrainerConfig,
        section,
    )
else:
    __getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "CroppedDataConfig",
    "DataConfig",
    "OptimizerConfig",
    "StrictModel",
    "TrainerConfig",
    "adamw",
    "parameter_groups",
    "section",
    "warmup_cosine",
]
