"""Load shards and a stream in as many processes as there are, from two steps on; run by tests/two_processes.py."""

from pathlib import Path

import torch
import torch.distributed as dist

from ssl_blocks.data import RandomResizedCropFlip, load, train_loader
from tests.data.test_archives import shards
from tests.data.test_streams import Pairs, StreamImages


def main(folder: Path) -> None:
    rank = dist.get_rank()
    if rank == 0:
        shards(folder)
    dist.barrier()
    for name, data in (
        ("shards", f"shards:{folder}/train-{{000..002}}.tar"),
        ("stream", StreamImages(Pairs(), count=22)),
    ):
        split = load(data, image_size=(6, 8), storage="stream", root=folder).train
        for first in (0, 2):
            loaded = loader(split, first_step=first, rank=rank, world_size=dist.get_world_size(), workers=first)
            torch.save(list(loaded), folder / f"{name}-{first}-{rank}.pt")


def loader(split, **options):
    return train_loader(split, seed=1, epochs=2, batch_size=4, crop=RandomResizedCropFlip((6, 8)), **options)
