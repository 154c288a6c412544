"""The one loop that trains: what a task is, settings, checkpoints, processes, signals, logs.

Lightning, underneath, is loaded where something is trained: by ``ssl_blocks.engine.fit``.
"""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.engine.errors import RunStopped as RunStopped
    from ssl_blocks.engine.optimizers import parameter_groups as parameter_groups, warmup_cosine as warmup_cosine
    from ssl_blocks.engine.parallel import (
        Machine as Machine,
        Processes as Processes,
        started_processes as started_processes,
    )
    from ssl_blocks.engine.settings import (
        CroppedDataConfig as CroppedDataConfig,
        DataConfig as DataConfig,
        OptimizerConfig as OptimizerConfig,
        StrictModel as StrictModel,
        TrainerConfig as TrainerConfig,
        section as section,
    )
    from ssl_blocks.engine.task import (
        CountedLoss as CountedLoss,
        Moment as Moment,
        Plan as Plan,
        Portion as Portion,
        Task as Task,
    )
else:
    __getattr__, __dir__ = lazily(__name__, __file__)
