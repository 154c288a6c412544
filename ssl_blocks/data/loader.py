"""Batches of a whole run, from any step on, for any number of processes."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssl_blocks.bounds import Batch, Count, Epochs, Seed, Whole, Workers
from ssl_blocks.data.augment import RandomResizedCropFlip
from ssl_blocks.data.files import Raw, UnreadableImageError
from ssl_blocks.data.splits import FileSplit, ImageSplit
from ssl_blocks.data.streams import StreamImages
from ssl_blocks.doors import checked
from ssl_blocks.randomness import seeded_generator

WINDOW = 1000  # images of a stream that are shuffled among each other
AHEAD = 4  # batches of a stream that are under way


class Place(NamedTuple):
    """Which image, and where in the run it comes: what its augmentation is drawn from."""

    image: int
    epoch: int
    slot: int


@checked
class RunSampler(Sampler[list[Place]]):
    """Which images every batch of a run holds, for one process.

    The order of an epoch is a pure function of the epoch. Every process takes its own part of every step, so
    that together they see what one process would, and a run that goes on sees what it would have seen. Images that
    do not fill a step are left out; they are other ones in every epoch.

    Args:
        num_images: of the data set.
        batch_size: images per optimizer step, over all processes and accumulated parts.
        seed: with the epoch, decides the order; at least 0.
        epochs: of the run.
        first_step: optimizer steps done already.
        rank: number of this process, from 0.
        world_size: number of processes.
        accumulate: batches per step and process.
        order: of the images ``[N]`` in an epoch; ``None`` takes one of (seed, epoch).

    Raises:
        ValueError: if a number is out of range, a step needs more images than there are, or its images cannot be
            dealt out evenly.

    Examples:
        >>> sampler = RunSampler(10, 4, seed=0, epochs=3, world_size=2)
        >>> len(sampler), [len(batch) for batch in sampler]
        (6, [2, 2, 2, 2, 2, 2])
    """

    def __init__(
        self,
        num_images: Count,
        batch_size: Batch,
        *,
        seed: Seed,
        epochs: Epochs = 1,
        first_step: Whole = 0,
        rank: Whole = 0,
        world_size: Count = 1,
        accumulate: Count = 1,
        order: Callable[[int], Tensor] | None = None,
    ) -> None:
        if rank >= world_size:
            raise ValueError(f"rank={rank} must be below world_size={world_size}")
        if batch_size > num_images:
            raise ValueError(f"batch_size={batch_size} must not exceed the data ({num_images} images)")
        if batch_size % (world_size * accumulate):
            raise ValueError(
                f"batch_size={batch_size} must be a multiple of world_size x accumulate = {world_size} x {accumulate}"
            )
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.steps_per_epoch = num_images // batch_size
        self.first_step, self.num_steps = first_step, self.steps_per_epoch * epochs
        self.order = lru_cache(maxsize=1)(order or self._order)  # the epoch under way is asked for several times

    def __len__(self) -> int:
        """Batches of the whole run, those done already included."""
        return self.num_steps * self.accumulate

    def __iter__(self) -> Iterator[list[Place]]:
        for step in range(self.first_step, self.num_steps):
            epoch = step // self.steps_per_epoch
            order = self.order(epoch)
            start = step % self.steps_per_epoch * self.batch_size
            slots = torch.arange(start, start + self.batch_size)
            for part in slots.tensor_split(self.accumulate):
                mine = part.tensor_split(self.world_size)[self.rank].tolist()
                yield [Place(image, epoch, slot) for image, slot in zip(order[mine].tolist(), mine, strict=True)]

    def _order(self, epoch: int) -> Tensor:
        # mixed, not added: (seed 0, epoch 1) and (seed 1, epoch 0) are different orders
        state = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0])
        return torch.randperm(self.num_images, generator=torch.Generator().manual_seed(state >> 1))  # 63 bits


class _Picks(Dataset[Tensor]):
    """Whole batches out of memory, picked by an order that is copied to its device once an epoch."""

    def __init__(self, images: Tensor, order: Callable[[int], Tensor]) -> None:
        self.images = images.view(torch.int16) if images.dtype == torch.uint16 else images  # which CUDA cannot index
        self.dtype = images.dtype
        self.order = lru_cache(maxsize=1)(lambda epoch: order(epoch).to(images.device))

    def __getitem__(self, places: list[Place]) -> Tensor:
        # a process's slots of a batch lie side by side
        return self.images[self.order(places[0].epoch)[places[0].slot : places[-1].slot + 1]].view(self.dtype)


class _Crops(Dataset[Any]):
    """Single images out of files, augmented. An error is an item, so that it arrives whole and in one line."""

    def __init__(self, split: FileSplit, crop: RandomResizedCropFlip, seed: int) -> None:
        self.split, self.crop, self.seed = split, crop, seed

    def __getitem__(self, place: Place) -> Tensor | Exception:
        generator = seeded_generator("cpu", self.seed, place.epoch, place.slot)
        try:
            return self.split.crop(place.image, lambda h, w: self.crop.draw_box(h, w, generator=generator))
        except ValueError as error:
            return type(error)(str(error))


def _collate(items: list[Tensor | Exception]) -> Tensor | Exception:
    return next((item for item in items if isinstance(item, Exception)), None) or torch.stack(items)  # type: ignore[arg-type]


class RaisingLoader(DataLoader[Any]):
    """A loader whose workers' errors are raised as they are, without the workers' traceback."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            yield batch


@dataclass(frozen=True, eq=False)
class StreamLoader:
    """Batches of a stream, which is read once an epoch by one thread; others decode.

    Every `WINDOW` images one after the other are shuffled. A process reads the whole pass and keeps its share.
    """

    split: FileSplit
    sampler: RunSampler  # places that lie `WINDOW` apart must come in order
    crop: RandomResizedCropFlip
    seed: int  # of crops
    threads: int  # that decode
    pin: bool  # whether batches are to lie in pinned memory

    def __len__(self) -> int:
        """Batches of the whole run, those done already included."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[UInt[Tensor, "b c h w"]]:
        reader, pool = ThreadPoolExecutor(1), ThreadPoolExecutor(self.threads)
        batches = self._batches()

        def begin_next() -> list[tuple[Place, Future[Tensor]]] | None:
            batch = next(batches, None)
            return None if batch is None else [(place, pool.submit(self._crop, place, raw)) for place, raw in batch]

        ahead = deque(reader.submit(begin_next) for _ in range(AHEAD))
        try:
            while (begun := ahead.popleft().result()) is not None:
                ahead.append(reader.submit(begin_next))
                yield self._together(begun)
        finally:
            for executor in (reader, pool):
                executor.shutdown(cancel_futures=True)

    def _batches(self) -> Iterator[list[tuple[Place, Raw]]]:
        assert isinstance(self.split.source, StreamImages)
        epoch, at, held = -1, 0, dict[int, Raw]()
        images: Iterator[Raw] = iter(())
        for places in self.sampler:
            batch = []
            for place in places:
                if place.epoch != epoch:
                    epoch, at, images = place.epoch, 0, self.split.source.images(place.epoch)
                    held.clear()
                begin = place.image - place.image % WINDOW
                while at <= place.image:
                    raw = next(images, None)
                    if raw is None:
                        raise ValueError(f"count={len(self.split)} must be no more images than a pass gives, {at}")
                    if at == begin:
                        held.clear()  # of the window before
                    if at >= begin:
                        held[at] = raw
                    at += 1
                batch.append((place, held.pop(place.image)))
            yield batch

    def _crop(self, place: Place, raw: Raw) -> Tensor:
        generator = seeded_generator("cpu", self.seed, place.epoch, place.slot)
        return self.split.crop_of(raw, lambda h, w: self.crop.draw_box(h, w, generator=generator))

    def _together(self, begun: list[tuple[Place, Future[Tensor]]]) -> Tensor:
        """A batch; where unreadable images are skipped, the next one of the batch is there twice."""
        crops: list[Tensor | None] = []
        for place, future in begun:
            try:
                crops.append(future.result())
            except UnreadableImageError:
                if self.split.corrupt == "error":
                    raise
                self.split.unreadable[place.image] = True
                crops.append(None)
        if all(crop is None for crop in crops):
            raise UnreadableImageError("corrupt='skip' must leave an image in every batch, but none can be read")
        batch = torch.stack([next(crop for crop in crops[i:] + crops if crop is not None) for i in range(len(crops))])
        return batch.pin_memory() if self.pin else batch


def _order_in_windows(count: int, seed: int) -> Callable[[int], Tensor]:
    def order(epoch: int) -> Tensor:
        noise = torch.rand(count, generator=seeded_generator("cpu", seed, epoch), dtype=torch.float64)
        return (torch.arange(count) // WINDOW + noise).argsort()

    return order


@checked
def train_loader(
    split: ImageSplit | FileSplit,
    *,
    seed: Seed,
    crop: RandomResizedCropFlip,
    workers: Workers | None = None,
    device: torch.device | str = "cpu",
    **run: Any,
) -> DataLoader[UInt[Tensor, "b c h w"]] | StreamLoader:
    """Load the batches of a run from a step on.

    Images in memory are moved to ``device`` once and come as they are: augment them there, in batches. Images in
    files come on CPU, cropped and mirrored already; what an image's crop is drawn from is its place in the epoch,
    whatever the number of workers and processes.

    Args:
        split: images.
        seed: of order and crops.
        crop: how images in files are augmented.
        workers: decoding processes, each with one thread; 0 decodes in this one, ``None`` takes one per CPU core:
            where several processes train on one machine, give each its `share_of_cores`. A stream is read by one
            thread of this process, and decoded by so many others.
        device: of the training step.
        **run: handed to `RunSampler`: ``batch_size``, ``epochs``, ``first_step``, ``accumulate``, ``rank`` and
            ``world_size``.

    Returns:
        A loader of ``[b, C, H, W]`` uint8 (or uint16, see `ImageSplit`) whose length counts the whole run.

    Raises:
        ValueError: see `RunSampler`.
        UnreadableImageError: while loading, if a file is unreadable and ``split.corrupt`` is ``"error"``.
    """
    workers = share_of_cores() if workers is None else workers
    pin = torch.device(device).type == "cuda"
    if isinstance(split, FileSplit) and split.is_stream:
        sampler = RunSampler(len(split), seed=seed, order=_order_in_windows(len(split), seed), **run)
        return StreamLoader(split, sampler, crop, seed, max(1, workers), pin)
    sampler = RunSampler(len(split), seed=seed, **run)
    if isinstance(split, ImageSplit):
        return DataLoader(_Picks(split.images.to(device), sampler.order), sampler=sampler, batch_size=None)
    options: dict[str, Any] = {"collate_fn": _collate, "num_workers": workers, "pin_memory": pin}
    return RaisingLoader(_Crops(split, crop, seed), batch_sampler=sampler, **options)


@checked
def share_of_cores(processes: Count = 1) -> int:
    """CPU cores for each of several processes of this machine, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // processes)
