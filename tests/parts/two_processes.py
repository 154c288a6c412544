"""A loss of the whole batch in as many processes as torchrun started; run by tests/two_processes.py."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_blocks.parts import gathered

ROWS = 6


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4, bias=False))


def batch() -> Tensor:
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1))


def covariance(x: Tensor) -> Tensor:
    """Squared covariances of values, which are no mean over rows."""
    centred = x - x.mean(0)
    return (centred.T @ centred / (len(x) - 1)).square().sum()


def gradients(rows: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """All rows, the loss of them, and the gradients of the weights."""
    model = network()
    seen = gathered(model(rows))
    loss = covariance(seen)
    loss.backward()
    return seen.detach(), loss.detach(), [value.grad for value in model.parameters()]


def main(folder: Path) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    seen, loss, found = gradients(batch().chunk(world)[rank])
    for gradient in found:  # as DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= world
    torch.save((seen, loss, found), folder / f"{rank}.pt")
