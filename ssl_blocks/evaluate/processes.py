"""Several processes that share the images of one evaluation."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Which part of the images is this process's.

    Args:
        rank: number of the process, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> Tensor:
        """Places of this process's images among ``count``: no image is in two parts.

        Examples:
            >>> [Share(rank, 2).of(5).tolist() for rank in range(2)]
            [[0, 2, 4], [1, 3]]
        """
        return torch.arange(self.rank, count, self.world)


def share_of_torchrun(tasks: Sequence[str]) -> Share:
    """What torchrun says; the whole where it was not used.

    Raises:
        ValueError: if there are several processes and a protocol is asked for that works in one.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    alone = [task for task in tasks if task != "knn"]
    if world > 1 and alone:
        raise ValueError(
            f"{' '.join(alone)} cannot share work between {world} processes, only knn can: start it without torchrun"
        )
    return Share(int(os.environ.get("RANK", "0")), world) if world > 1 else Share()


@contextmanager
def connected(share: Share, device: str) -> Iterator[str]:
    """Connect the processes while the block runs.

    Args:
        share: of this process.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        The device of this process.
    """
    if share.world == 1:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
