"""Several processes: how many there are, which one this is, and how the model lies in them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed import is_torchelastic_launched
from torch.distributed.fsdp import FSDPModule, fully_shard

from ssl_blocks.engine.rank import ProcessesError
from ssl_blocks.engine.settings import OptimizerConfig, TrainerConfig


@dataclass(frozen=True)
class Processes:
    """How many processes train together: ``devices`` on each of ``num_nodes`` machines."""

    devices: int = 1
    num_nodes: int = 1

    @property
    def world_size(self) -> int:
        """All of them."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class Machine:
    """Where a task is trained.

    Args:
        device: ``"cpu"`` or ``"cuda"``, with a number where one process is to have a certain GPU.
        autocast_dtype: precision under autocast; ``None`` switches autocast off.
        processes: how many train together.
        strategy: of several processes: whole copies of the model, or its blocks in shards.
        pure: whether weights of linear maps are of 16 bits, see `MasterAdamW`.
        tf32: whether products of float32 matrices may be rounded to TF32 on a GPU.
        graph: whether steps are captured as a CUDA graph: ``auto`` where it can be.

    Raises:
        ValueError: if ``pure`` is asked for without ``autocast_dtype=torch.bfloat16``.
    """

    device: torch.device | str = "cpu"
    autocast_dtype: torch.dtype | None = None
    processes: Processes = Processes()
    strategy: Literal["ddp", "fsdp"] = "ddp"
    pure: bool = False
    tf32: bool = False
    graph: Literal["auto", "on", "off"] = "off"

    def __post_init__(self) -> None:
        if self.pure and self.autocast_dtype != torch.bfloat16:
            raise ValueError(f"pure=True needs autocast_dtype=torch.bfloat16, got {self.autocast_dtype}")

    @property
    def on_gpu(self) -> bool:
        """Whether training is to be on one."""
        return torch.device(self.device).type == "cuda"


def started_processes() -> Processes:
    """What ``torchrun`` has started; one process where it was not used."""
    if not is_torchelastic_launched():
        return Processes()
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return Processes(local, int(os.environ["WORLD_SIZE"]) // local)


def count_processes(trainer: TrainerConfig, settings: OptimizerConfig) -> Processes:
    """Read off configuration and ``torchrun`` how many processes there will be.

    Raises:
        ValueError: if the two disagree, ``srun`` has started another number, or a step's images cannot be dealt out
            evenly.
    """
    given = {"devices": trainer.devices, "num_nodes": trainer.num_nodes}
    started = vars(started_processes())
    for name, value in given.items():
        if is_torchelastic_launched() and value not in (None, started[name]):
            raise ValueError(f"trainer.{name}={value} must be left out, or be torchrun's {started[name]}")
    found = Processes(**{name: given[name] or started[name] for name in started})
    if not is_torchelastic_launched():
        _check_starter(found, os.environ.get("SLURM_STEP_NUM_TASKS"), is_said=trainer.devices is not None)
    if settings.batch_size % (found.world_size * settings.accumulate):
        raise ValueError(
            f"optimizer.batch_size={settings.batch_size} must be a multiple of processes x optimizer.accumulate = "
            f"{found.world_size} x {settings.accumulate}"
        )
    if trainer.precision == "bf16-pure" and found.world_size > 1:
        raise ValueError(
            f"trainer.precision='bf16-pure' trains in one process, but there are {found.world_size}: use bf16"
        )
    if trainer.strategy == "fsdp" and found.world_size == 1:
        raise ValueError("trainer.strategy='fsdp' needs at least two processes: give trainer.devices, or use torchrun")
    return found


def _check_starter(found: Processes, by_srun: str | None, *, is_said: bool) -> None:
    """Refuse variables that make Lightning wait for processes that nobody starts."""
    if by_srun is not None and int(by_srun) != found.world_size:
        counted = f"trainer.devices x trainer.num_nodes = {found.world_size}"
        raise ValueError(f"{counted} must be the {by_srun} tasks that srun has started")
    if by_srun is not None:
        return
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if tasks != "1" and not is_said:
        raise ProcessesError(
            f"SLURM_NTASKS={tasks}, but srun has not started this process: use srun, or trainer.devices"
        )
    local = os.environ.get("LOCAL_RANK")
    if found.world_size > 1 and local is not None and "NODE_RANK" not in os.environ:
        raise ProcessesError(
            f"LOCAL_RANK={local} is left over in the environment, and nothing has started {found.world_size} "
            "processes: unset it, or use torchrun"
        )


def choose_strategy(machine: Machine) -> Any:
    """Lightning's strategy for this many processes."""
    from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy

    world_size = machine.processes.world_size
    if world_size == 1:
        return "auto"
    if machine.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy(gradient_as_bucket_view=True)


def environment_plugins() -> list[Any]:
    """Keep Lightning from resubmitting jobs by itself: it would go on from checkpoints of its own.

    Nor may it take a process for one of srun's that only lies in an allocation.
    """
    from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

    if not SLURMEnvironment.detect():
        return []
    if "SLURM_STEP_NUM_TASKS" in os.environ or is_torchelastic_launched():
        return [SLURMEnvironment(auto_requeue=False)]
    return [LightningEnvironment()]


def shard(model: nn.Module, mesh: Any) -> None:
    """Deal out the parameters of every block, and then what is left, over the processes (FSDP)."""
    for block in repeated_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Put together the parameters that belong to no block, so that parts can be called by themselves."""
    dealt_out = model if isinstance(model, FSDPModule) else None
    if dealt_out is not None:
        dealt_out.unshard()
    try:
        yield
    finally:
        if dealt_out is not None:
            dealt_out.reshard()


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Transformer blocks: the members of lists whose members are all of one class, and have parameters."""
    lists = [list(part) for part in model.modules() if isinstance(part, nn.ModuleList | nn.Sequential)]
    alike = [part for part in lists if len(part) > 1 and len({type(member) for member in part}) == 1]
    return [block for part in alike if all([*member.parameters()] for member in part) for block in part]


def one_for_none(count: torch.Tensor) -> torch.Tensor:
    """What to divide by: the count, or 1 where nothing counts."""
    return torch.where(count > 0, count, 1.0)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all processes, in place; alone, it stays as it is."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
