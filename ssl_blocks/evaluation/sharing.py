"""Several processes that share the images of one evaluation."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Which part of the images is this process's: its number, from 0, and how many there are."""

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> range:
        """Places of this process's images among ``count``: no image is in two parts.

        Examples:
            >>> [list(Share(rank, 2).of(5)) for rank in range(2)]
            [[0, 2, 4], [1, 3]]
        """
        return range(self.rank, count, self.world)

    def device(self, device: str) -> str:
        """``"cpu"``, or this process's own GPU."""
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if self.world > 1 and device == "cuda" else device


def share_of_torchrun() -> Share:
    """What torchrun says; the whole where it was not used."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return Share(int(os.environ.get("RANK", "0")), world) if world > 1 else Share()


@contextmanager
def connected(share: Share, device: str) -> Iterator[None]:
    """Connect the processes while the block runs; ``device`` is this process's, such as ``"cpu"`` or ``"cuda:1"``."""
    if share.world == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if device != "cpu":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield
    finally:
        dist.destroy_process_group()
