"""Which of several processes speaks: known before they have met, and without PyTorch."""

import os

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")
NUMBERS = (*TORCHRUN[:4], "NODE_RANK", "MASTER_PORT", *SRUN)


class ProcessesError(ValueError):
    """What the environment says of several processes cannot be; every process tells it."""


def check_environment() -> None:
    """Refuse what is said of several processes and cannot be: every process asks before it does anything.

    Raises:
        ProcessesError: naming the variable, its value and the way out.
    """
    for name in NUMBERS:
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.isdigit()):
            raise ProcessesError(f"{name}={value!r} in the environment must be a whole number: unset it, or correct it")
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    by_lightning = not by_torchrun and "NODE_RANK" in os.environ and "RANK" not in os.environ
    if by_torchrun or (int(os.environ.get("WORLD_SIZE", "1")) > 1 and not by_lightning):
        missing = [name for name in TORCHRUN if name not in os.environ]
        said = "TORCHELASTIC_RUN_ID" if by_torchrun else f"WORLD_SIZE={os.environ['WORLD_SIZE']}"
        if missing:
            raise ProcessesError(
                f"{said} is in the environment, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not: "
                f"start all processes by torchrun, or unset {said.partition('=')[0]}"
            )
        for rank, world in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
            if int(os.environ[rank]) >= int(os.environ[world]):
                given = f"{rank}={os.environ[rank]} in the environment must be below {world}={os.environ[world]}"
                raise ProcessesError(f"{given}: start all processes by torchrun, or unset them")
    by_srun = "SLURM_STEP_NUM_TASKS" in os.environ and not by_torchrun
    missing = [name for name in SRUN if name not in os.environ]
    if by_srun and int(os.environ["SLURM_STEP_NUM_TASKS"]) > 1 and missing:
        raise ProcessesError(
            f"SLURM_STEP_NUM_TASKS={os.environ['SLURM_STEP_NUM_TASKS']} is in the environment, but {missing[0]} is "
            "not: start all processes by srun, or unset it"
        )
    if by_srun and int(os.environ["SLURM_NTASKS"]) > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ProcessesError(
            "SLURM_NTASKS_PER_NODE is not in the environment: give srun --ntasks-per-node, not --ntasks"
        )


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
    return not any(os.environ.get(name, "0").strip("0").isdigit() for name in names)
