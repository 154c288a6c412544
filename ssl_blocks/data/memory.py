"""Batches of images that are in memory anyway."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset


class EpochBatches(Dataset[Tensor]):
    """A map-style data set whose item ``i`` is the ``i``-th batch of the current epoch, shuffled.

    The order is a pure function of ``(seed, epoch)``. Every process takes its own part of every global batch,
    so that ``world_size`` processes with batches of ``b`` see what one process with batches of
    ``b * world_size`` sees. Give it to a ``DataLoader`` with ``batch_size=None`` and no workers (a worker
    would keep the epoch it was started in).

    Args:
        images: ``[N, C, H, W]`` uint8, on any device; batches are made there.
        batch_size: images per batch and process.
        seed: with the epoch, decides the order; at least 0.
        rank: number of this process, from 0.
        world_size: number of processes.
        drop_last: leave out the images that do not fill a global batch. They are other ones in every epoch.

    Raises:
        ValueError: if a number is out of range, a global batch needs more images than there are, or, with
            ``drop_last=False``, the last global batch has fewer images than there are processes.

    Examples:
        >>> batches = EpochBatches(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), 4, seed=0)
        >>> len(batches), batches[0].shape
        (2, torch.Size([4, 3, 8, 8]))
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
    ) -> None:
        for name, value, lowest in (
            ("batch_size", batch_size, 1),
            ("world_size", world_size, 1),
            ("seed", seed, 0),
        ):
            if value < lowest:
                raise ValueError(f"{name}={value} must be at least {lowest}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must be at least 0 and below world_size={world_size}")
        global_batch = batch_size * world_size
        if global_batch > len(images):
            raise ValueError(
                f"batch_size={batch_size} times world_size={world_size} must not exceed the data ({len(images)} images)"
            )
        rest = len(images) % global_batch
        if not drop_last and 0 < rest < world_size:
            raise ValueError(
                f"drop_last={drop_last} must leave every process an image, but the last global batch has "
                f"{rest} for world_size={world_size}"
            )
        self.images, self.seed, self.rank, self.world_size = images, seed, rank, world_size
        self._global_batch = global_batch
        self._length = len(images) // global_batch + (not drop_last and rest > 0)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew for an epoch, counted from 0.

        Raises:
            ValueError: if the epoch is below 0.
        """
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must be at least 0")
        # mixed, not added: (seed 0, epoch 1) and (seed 1, epoch 0) are different orders
        state = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(state >> 1)  # torch wants 63 bits
        self.epoch = epoch
        self._order = torch.randperm(len(self.images), generator=generator)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> UInt8[Tensor, "b c h w"]:
        """Return this process's part of global batch ``index``, ``[batch_size, C, H, W]``."""
        start = range(self._length)[index] * self._global_batch
        part = self._order[start : start + self._global_batch].tensor_split(self.world_size)[self.rank]
        return self.images[part.to(self.images.device)]
