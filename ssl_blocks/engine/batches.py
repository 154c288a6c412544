"""Batches that depend on their place in a run alone: whoever makes them, and wherever the run goes on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ssl_blocks.engine.task import Plan, Portion
from ssl_blocks.randomness import seeded_generator

Make = Callable[[Tensor, int, int], Any]


def load_parts(
    make: Make, plan: Plan, portion: Portion, *, num_images: int, key: tuple[int, ...], workers: int = 0
) -> DataLoader[Any]:
    """Load a process's parts of all steps that are left; two processes take the parts that one would accumulate.

    Every epoch has an order of its own. Images that fill no batch are left out of an epoch.

    Args:
        make: batch of the images at ``[b]`` places, for a step and a part of it, counted over all processes; it
            draws from a seed of these alone.
        plan: sizes.
        portion: whose parts.
        num_images: of the data.
        key: with the epoch, decides the order.
        workers: processes that make batches.

    Raises:
        ValueError: if the batch cannot be dealt out evenly.
    """
    world, parts = portion.world_size, portion.world_size * plan.accumulate
    if plan.batch_size % parts:
        raise ValueError(
            f"a batch of {plan.batch_size} images must be a multiple of processes x accumulate = {world} x "
            f"{plan.accumulate}"
        )
    mine = [
        step * parts + number * world + portion.rank
        for step in range(portion.first_step, plan.num_steps)
        for number in range(plan.accumulate)
    ]
    return DataLoader(
        _Parts(make, plan, parts, num_images, key),
        sampler=mine,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=portion.device.type == "cuda",
    )


def _as_it_is(batch: Any) -> Any:
    return batch


class _Parts(Dataset[Any]):
    """All parts of all steps by number. An error in a worker is an item, so that it arrives whole and in one line."""

    def __init__(self, make: Make, plan: Plan, parts: int, num_images: int, key: tuple[int, ...]) -> None:
        self.make, self.plan, self.parts, self.num_images, self.key = make, plan, parts, num_images, key
        self.epoch, self.order = -1, torch.empty(0)

    def __getitem__(self, number: int) -> Any:
        step, part = divmod(number, self.parts)
        epoch, within = divmod(step, self.plan.steps_per_epoch)
        if epoch != self.epoch:
            generator = seeded_generator("cpu", *self.key, epoch)
            self.epoch, self.order = epoch, torch.randperm(self.num_images, generator=generator)
        size = self.plan.batch_size
        places = self.order[within * size : (within + 1) * size].chunk(self.parts)[part]
        try:
            return self.make(places, step, part)
        except (ValueError, OSError) as error:
            if get_worker_info() is None:
                raise
            return type(error)(str(error))
