"""The looks of the leak test at many draws in one pass: rare ones, other images, places and order."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_blocks.testing.leak_case import LeakCase, LeakError, Pixels
from ssl_blocks.testing.leak_checks import smallest_move
from ssl_blocks.values import ObjectiveOutput, Serialization

_SHARE = 0.1  # of rows that should stand still: so many move a little by rounding at most


def batches(draws: int) -> tuple[int, ...]:
    """Sizes of the batches that are looked at: a leak may need a small one or a large one."""
    return tuple(sorted({max(2, draws // part) for part in (32, 4, 1)}))


def check_hidden(case: LeakCase, generator: torch.Generator | None, tolerance: float, when: str) -> None:
    """Put noise on all that one row of every image may not see: the row that sees least, then any row."""
    out, noise = case.out, case.noise(generator)
    sees = torch.where(out.is_target, case.may.sum(-1), case.may.shape[-1] + 1)
    chance = torch.rand(sees.shape, generator=generator, device=sees.device)
    any_row = torch.where(out.is_target, chance, 2.0).argmin(1)
    image = torch.arange(len(sees), device=sees.device)
    masks = [~case.may[image, row] for row in (sees.argmin(1), any_row)]
    for hidden in masks[:1] if torch.equal(*masks) else masks:
        where = tuple(a | b for a, b in zip(case.where(hidden), case.cropped(), strict=True))
        blind = out.is_target & ~(case.may & hidden[:, None]).any(-1)
        for at, slot, moved in _wrong(case, case.changed(noise, where), blind, tolerance):
            raise LeakError(
                f"by noise{when}: the prediction of step {int(out.step[at, slot])} in image {at} of "
                f"{len(hidden)} changes with pixels that it may not see, by {moved:.1g}"
            )


def check_images(case: LeakCase, generator: torch.Generator | None, tolerance: float, when: str) -> None:
    """Put noise on half of the images of a batch: nothing of the others may move."""
    out, noise = case.out, case.noise(generator)
    number = len(out.index)
    place = torch.arange(number, device=out.index.device)
    some = torch.randperm(number, generator=generator, device=place.device) < number // 2
    for changed in (some, ~some):
        where = tuple(changed.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x) for x in case.pixels)
        still = out.is_target & ~changed[:, None]
        for image, slot, moved in _wrong(case, case.changed(noise, where), still, tolerance):
            raise LeakError(
                f"by noise{when}: the prediction of step {int(out.step[image, slot])} in image {image} of {number} "
                f"changes with pixels of other images in the same batch, by {moved:.1g}"
            )


def check_places(case: LeakCase, generator: torch.Generator | None, tolerance: float, when: str) -> str | None:
    """Let tokens of later steps exchange places, of which no prediction may know; return why that is not looked at."""
    draw, out = case.draw, case.out
    if not isinstance(draw, Serialization):
        return "the draw is no Serialization, so whether predictions know where later tokens lie was not looked at"
    last = draw.step.amax(1)
    early = out.is_target & (out.step < last[:, None])
    chance = torch.rand(early.shape, generator=generator, device=early.device)
    row = torch.where(early, chance, -1.0).argmax(1, keepdim=True)
    upto = torch.where(early.any(1, keepdim=True), out.step.gather(1, row), last[:, None])
    slots = _shuffled(draw.step > upto, generator)
    other = replace(draw, order=draw.order.gather(1, slots))
    for image, slot, moved in _wrong(case, case.plain, out.is_target & (out.step <= upto), tolerance, other):
        raise LeakError(
            f"the prediction of step {int(out.step[image, slot])} in image {image} changes{when} when tokens of later "
            f"steps exchange their places, by {moved:.1g}: it knows where later tokens lie"
        )
    return None


def check_order(case: LeakCase, generator: torch.Generator | None) -> str | None:
    """Let two tokens of a step exchange their slots: their predictions stay; return why that cannot be looked at."""
    draw, out = case.draw, case.out
    if not isinstance(draw, Serialization) or (out.given is not None and out.given.ndim == 3):
        return "the draw is no Serialization, so whether rows follow their own queries was not looked at"
    if any(getattr(part, "in_order", False) for part in case.subject.module.modules()):
        return "the reader counts on the order of tokens, so whether rows follow their own queries was not looked at"
    chance = torch.rand(out.step.shape, generator=generator, device=out.step.device)
    step = out.step.gather(1, torch.where(out.is_target, chance, -1.0).argmax(1, keepdim=True))
    own = draw.step == step
    chance = torch.rand(own.shape, generator=generator, device=own.device)
    first, second = torch.where(own, chance, -1.0).topk(2, dim=1).indices.unbind(1)
    slots = torch.arange(own.shape[1], device=own.device).repeat(len(own), 1)
    slots.scatter_(1, first[:, None], second[:, None]).scatter_(1, second[:, None], first[:, None])
    slots = torch.where(own.sum(1, keepdim=True) > 1, slots, slots.sort(1).values)
    changed = case.outcome(case.plain, replace(draw, order=draw.order.gather(1, slots)))
    tokens = case.step_of.shape[1]
    before, after = (_by_position(one, tokens) for one in (case.before, changed))
    exact = before.dtype == torch.float64
    moved, size = (after - before).abs().amax(-1), before.abs().amax(-1)
    wrong = moved > (1e-9 if exact else 1e-3) * size.amax(1, keepdim=True)
    for image, position in wrong.nonzero()[:1].tolist():
        raise LeakError(
            f"the prediction of position {position} in image {image} changes by {float(moved[image, position]):.1g} "
            "when two tokens of a step exchange their slots: it does not follow the query of its own index"
        )
    return _check_pairs(case, generator)


def _check_pairs(case: LeakCase, generator: torch.Generator | None) -> str | None:
    """In steps of two tokens, whose exchange says nothing: a row moves most when its own place changes."""
    draw, out = case.draw, case.out
    last = draw.step.amax(1, keepdim=True)
    size = (draw.step[:, :, None] == draw.step[:, None]).sum(-1)
    fits = (size == 2) & (draw.step < last)
    row_fits = fits.gather(1, _slots(draw, out)) & out.is_target
    if int(row_fits.any(1).sum()) < 16:
        return None
    chance = torch.rand(row_fits.shape, generator=generator, device=row_fits.device)
    row = torch.where(row_fits, chance, -1.0).argmax(1, keepdim=True)
    mine = _slots(draw, out).gather(1, row)
    every = torch.arange(draw.order.shape[1], device=row.device).expand_as(draw.order)
    partner = ((draw.step == draw.step.gather(1, mine)) & (every != mine)).long().argmax(1, keepdim=True)
    end = torch.full_like(mine, draw.order.shape[1] - 1)
    before, moves = case.before.predictions, []
    for slot in (mine, partner):
        order = draw.order.scatter(1, slot, draw.order.gather(1, end)).scatter(1, end, draw.order.gather(1, slot))
        after = case.predict(case.plain, replace(draw, order=order))
        moves.append((after - before).abs().amax(-1).gather(1, row)[row_fits.any(1)])
    if float((moves[1] > moves[0]).double().mean()) > 0.9:
        raise LeakError(
            "predictions change more with the place of the other token of their step than with their own: they do not "
            "follow the query of their own index"
        )
    return None


def _slots(draw: Serialization, out: ObjectiveOutput) -> Int[Tensor, "b t"]:
    return draw.rank.gather(1, out.index)


def _by_position(out: ObjectiveOutput, tokens: int) -> Float[Tensor, "b n p"]:
    """Predictions of targets where their positions are; 0 elsewhere."""
    rows = torch.where(out.is_target[..., None], out.predictions, 0.0)
    blank = rows.new_zeros(rows.shape[0], tokens, rows.shape[2])
    return blank.scatter_add(1, out.index[..., None].expand_as(rows), rows)


def _shuffled(some: Bool[Tensor, "b n"], generator: torch.Generator | None) -> Int[Tensor, "b n"]:
    """Slots, of which those in ``some`` are exchanged among each other."""
    chance = torch.rand(some.shape, generator=generator, device=some.device)
    place = torch.arange(some.shape[1], device=some.device).expand_as(chance)
    old, new = (torch.where(some, key, some.shape[1] + place).argsort(1) for key in (place.to(chance.dtype), chance))
    return torch.empty_like(old).scatter(1, old, new)


def _wrong(
    case: LeakCase,
    pixels: Pixels,
    still: Bool[Tensor, "b t"],
    tolerance: float,
    draw: Any = None,
) -> Iterator[tuple[int, int, float]]:
    """Image, row and move of the first row that moved and should not have.

    In 16 bits, where rounding hides what is small, many rows that move by one step of rounding are a leak as well.
    """
    before = case.before.predictions
    moved = (case.predict(pixels, draw) - before).abs().amax(-1)
    scale = torch.where(case.out.is_target, moved, 0.0).amax(1, keepdim=True)
    wrong = still & (moved > smallest_move(before, scale, tolerance))
    coarse = torch.finfo(before.dtype).bits == 16
    if coarse and int((still & (moved > 0)).sum()) > _SHARE * int(still.sum()):
        wrong = still & (moved > 0)
    for image, row in wrong.nonzero()[:1].tolist():
        yield image, row, float(moved[image, row])
