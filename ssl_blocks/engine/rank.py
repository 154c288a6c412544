"""Which of several processes speaks: known before they have met, and without PyTorch."""

import os


def is_rank_zero() -> bool:
    """Whether this is the process that speaks and writes.

    A rank that stands in the environment counts only where something has started several processes: torchrun, srun,
    or Lightning.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        names = ["RANK"]
    elif "SLURM_STEP_NUM_TASKS" in os.environ:
        names = ["SLURM_PROCID"]
    else:
        names = ["LOCAL_RANK", "NODE_RANK"] if "NODE_RANK" in os.environ else []
    return all(int(os.environ.get(name, 0)) == 0 for name in names)
