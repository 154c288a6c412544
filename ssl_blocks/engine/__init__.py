"""The loop that training runs on: settings, checkpoints, processes, signals, logs."""

from ssl_blocks.engine.optimizers import adamw, parameter_groups, warmup_cosine
from ssl_blocks.engine.settings import DataConfig, OptimizerConfig, StrictModel, TrainerConfig, section

__all__ = [
    "DataConfig",
    "OptimizerConfig",
    "StrictModel",
    "TrainerConfig",
    "adamw",
    "parameter_groups",
    "section",
    "warmup_cosine",
]
