"""Which of several processes this is, as its environment says; known without PyTorch."""

import os


def is_rank_zero() -> bool:
    """Whether this is the process that speaks and writes; known before the processes have met."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0) == 0
