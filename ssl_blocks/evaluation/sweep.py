"""Heads on frozen features: how they are trained, and a choice among settings on images held out of train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from rich.progress import track
from torch import Tensor

from ssl_blocks.bounds import Classes
from ssl_blocks.doors import checked
from ssl_blocks.engine.optimizers import warmup_cosine
from ssl_blocks.evaluation.protocol import CannotScoreError, Result
from ssl_blocks.randomness import seeded_generator

INITIAL, HELD_OUT, ORDER, CROPS = range(4)  # what a generator is for


@checked
@dataclass(frozen=True)
class SweepScore(Result):
    """What a classifier reaches on the test images, 0..1, with the setting that did best on images held out of train.

    The setting is a base learning rate, or the ``C`` of a logistic regression; ``validation`` has each one's accuracy
    on the images held out, and is empty where there was nothing to choose.
    """

    accuracy: float
    chosen: float
    candidates: tuple[float, ...]
    validation: tuple[float, ...]
    num_classes: Classes


def sweep(
    predict: Callable[[float, Tensor, Tensor | None], Tensor],
    candidates: Sequence[float],
    labels: Int[Tensor, " n"],
    test_labels: Int[Tensor, " m"],
    *,
    validation: float,
    num_classes: int,
    generator: torch.Generator,
) -> SweepScore:
    """Choose a setting on a share of train that is held out, fit it again to all of train, and score it.

    ``predict(setting, places, unseen)`` fits to these images of train, and gives classes to others of train, or to the
    test images where ``unseen`` is ``None``. Labels lie on the CPU.
    """
    everything, chosen = torch.arange(len(labels)), candidates[0]
    reached: tuple[float, ...] = ()
    if len(candidates) > 1:
        held = hold_out(labels, validation, generator)
        rest = everything[~torch.isin(everything, held)]
        reached = tuple(accuracy(predict(one, rest, held), labels[held]) for one in candidates)
        chosen = candidates[reached.index(max(reached))]
    share = accuracy(predict(chosen, everything, None), test_labels)
    return SweepScore(share, chosen, tuple(candidates), reached, num_classes)


def descend(
    title: str,
    loss_of: Callable[[Tensor, int], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    num: int,
    batch: int,
    epochs: int,
    warmup_steps: int,
    seed: int,
    progress: bool,
) -> None:
    """Follow ``loss_of(places, epoch)`` down: batches of ``num`` images, a linear warm-up, and half a cosine."""
    steps = num // batch
    schedule = warmup_cosine(optimizer, num_steps=steps * epochs, warmup_steps=warmup_steps)
    for epoch in track(range(epochs), title, disable=not progress, transient=True):
        order = torch.randperm(num, generator=seeded_generator("cpu", seed, ORDER, epoch))
        for number, places in enumerate(torch.split(order[: steps * batch], batch)):
            schedule.step_update(epoch * steps + number)
            loss = loss_of(places, epoch)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()


def hold_out(labels: Int[Tensor, " n"], share: float, generator: torch.Generator) -> Int[Tensor, " v"]:
    """Draw a share of every class, rounded and at least one image; a class of one image keeps it for training.

    Returns the places that are held out, ascending; ``CannotScoreError`` if there are none.

    Examples:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
        >>> labels[hold_out(labels, 0.25, torch.Generator().manual_seed(0))]
        tensor([0, 1])
    """
    held = []
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    places = torch.cat(held).sort().values
    if len(places) == 0:
        raise CannotScoreError("a choice needs images to hold out, but every class has one image")
    return places


def accuracy(predicted: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> float:
    """Share of predicted classes that are the labels, 0..1, every image counting alike (micro).

    Examples:
        >>> import torch
        >>> accuracy(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 1]))
        0.75
    """
    return float((predicted == labels.to(predicted.device)).float().mean())
