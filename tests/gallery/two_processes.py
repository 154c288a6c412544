"""A step of methods of the gallery, in as many processes as torchrun started; run by tests/two_processes.py."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_blocks.testing.role_case import rows_of
from tests.gallery.methods import draw, tiny

SIZE = 4
# a loss of its own, of the whole batch, or over rows that are not equally many in every image; others share their mean
DIVIDED = ("cae", "dinov2", "hpm", "lejepa", "randsac_superpixels", "simclr_mae", "vicreg_mae")


def gradients(name: str, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of some images of the batch, divided by what counts in all of it, as a training loop does."""
    objective, images = tiny(name)
    whole = draw(objective, images)
    out = objective(rows_of(images, rows, SIZE), rows_of(whole, rows, SIZE))
    share = torch.ones(())
    if dist.is_available() and dist.is_initialized():
        total = out.divisor.to(torch.float32).clone()
        dist.all_reduce(total)
        share = out.divisor * dist.get_world_size() / total
    loss = out.loss * share
    loss.backward()
    return loss.detach(), {key: p.grad for key, p in objective.named_parameters() if p.grad is not None}


def main(folder: Path) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    share, found = SIZE // world, {}
    for name in DIVIDED:
        loss, grads = gradients(name, slice(rank * share, (rank + 1) * share))
        for value in (loss, *grads.values()):  # as DistributedDataParallel does
            dist.all_reduce(value)
            value /= world
        found[name] = (loss, grads)
    if rank == 0:
        torch.save(found, folder / "found.pt")
