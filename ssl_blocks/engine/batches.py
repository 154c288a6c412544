"""Batches that depend on their place in a run alone: whoever makes them, and wherever the run goes on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, get_worker_info

from ssl_blocks.data.loader import Place, RaisingLoader, RunSampler
from ssl_blocks.engine.task import Plan, Portion
from ssl_blocks.randomness import seeded_generator

Make = Callable[[Tensor, int, int], Any]


def load_parts(
    make: Make, plan: Plan, portion: Portion, *, num_images: int, key: tuple[int, ...], workers: int = 0
) -> RaisingLoader:
    """Load a process's parts of all steps that are left; two processes take the parts that one would accumulate.

    ``make`` makes the batch of the images at ``[b]`` places, for a step and a part of it, counted over all processes;
    it draws from a seed of these alone. ``key``, with the epoch, decides the order.

    Raises:
        ValueError: if the batch cannot be dealt out evenly.
    """
    sampler = RunSampler(
        num_images,
        plan.batch_size,
        seed=plan.seed,
        epochs=plan.epochs,
        first_step=portion.first_step,
        rank=portion.rank,
        world_size=portion.world_size,
        accumulate=plan.accumulate,
        order=lambda epoch: torch.randperm(num_images, generator=seeded_generator("cpu", *key, epoch)),
    )
    return RaisingLoader(
        _Made(make, plan, plan.batch_size // (portion.world_size * plan.accumulate)),
        sampler=sampler,
        batch_size=None,
        collate_fn=nn.Identity(),  # parts are whole already
        num_workers=workers,
        pin_memory=portion.device.type == "cuda",
    )


class _Made(Dataset[Any]):
    """Whole parts. An error in a worker is an item, so that it arrives whole and in one line."""

    def __init__(self, make: Make, plan: Plan, size: int) -> None:
        self.make, self.plan, self.size = make, plan, size

    def __getitem__(self, places: list[Place]) -> Any:
        step, within = divmod(places[0].slot, self.plan.batch_size)
        step += places[0].epoch * self.plan.steps_per_epoch
        try:
            return self.make(torch.tensor([place.image for place in places]), step, within // self.size)
        except (ValueError, OSError) as error:
            if get_worker_info() is None:
                raise
            return type(error)(str(error))
