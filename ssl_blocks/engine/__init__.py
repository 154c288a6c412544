"""The one loop that trains: what a task is, settings, checkpoints, processes, signals, logs.

Lightning, underneath, is loaded where something is trained: by ``ssl_blocks.engine.fit``.
"""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.engine.errors import RunStopped
    from ssl_blocks.engine.optimizers import parameter_groups, warmup_cosine
    from ssl_blocks.engine.parallel import Machine, Processes, started_processes
    from ssl_blocks.engine.settings import (
        CroppedDataConfig,
        DataConfig,
        OptimizerConfig,
        StrictModel,
        TrainerConfig,
        section,
    )
    from ssl_blocks.engine.task import CountedLoss, Moment, Plan, Portion, Task
else:
    __getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "CountedLoss",
    "CroppedDataConfig",
    "DataConfig",
    "Machine",
    "Moment",
    "OptimizerConfig",
    "Plan",
    "Portion",
    "Processes",
    "RunStopped",
    "StrictModel",
    "Task",
    "TrainerConfig",
    "parameter_groups",
    "section",
    "started_processes",
    "warmup_cosine",
]
