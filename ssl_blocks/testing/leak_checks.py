"""The looks of the leak test: at targets and loss, by gradient, by noise, and at places."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssl_blocks.testing.leak_case import LeakCase, LeakError, Pixels, noise_like
from ssl_blocks.values import gather_tokens


def check_targets(case: LeakCase) -> None:
    """Each row's target is that of its own index."""
    if case.subject.target is None:
        return
    with torch.no_grad():
        whole = case.subject.target(case.images(case.pixels))
    if whole.shape[1] != case.may.shape[2]:
        raise ValueError(f"target gives {whole.shape[1]} positions, but the images have {case.may.shape[2]}")
    expected = gather_tokens(whole, case.out.index.clamp(0, whole.shape[1] - 1))
    wrong = ~torch.isclose(case.out.targets, expected, rtol=1e-4, atol=1e-5).all(-1) & case.out.is_target
    for image, row in wrong.nonzero()[:1].tolist():
        raise LeakError(
            f"target row {row} of image {image} is not the target of position {int(case.out.index[image, row])}, "
            "its own index: targets are shifted against predictions"
        )


def check_loss(case: LeakCase) -> str | None:
    """The loss counts the rows that ``is_target`` says; return why that cannot be told.

    A clipped loss has no gradient at rows that are far off. So a row that is a target and has none is an error only
    where chance does not explain it: all rows of a slot, an image, a step or a position have none, which would happen
    once in a million times if they were as likely to have one as others are.
    """
    out = case.out
    (gradient,) = torch.autograd.grad(out.loss, out.predictions, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise LeakError("the loss is not computed from the predictions of the output, so nothing can be said of it")
    counts = (gradient != 0).any(-1)
    for image, row in (counts & ~out.is_target).nonzero()[:1].tolist():
        raise LeakError(f"row {row} of image {image} is no target by is_target, but counts in the loss")
    if not bool(counts.any()):
        return "the loss has no gradient at any row (is it clipped?), so which rows count was not looked at"
    silent = out.is_target & ~counts
    if not bool(silent.any()):
        return None
    image, slot = (torch.arange(n, device=counts.device) for n in counts.shape)
    kinds = (slot[None].expand_as(counts), image[:, None].expand_as(counts), out.step, out.index)
    for kind in (kind.clamp(min=0) for kind in kinds):
        for one in sorted(set(kind[silent].tolist())):
            own = out.is_target & (kind == one)
            others = out.is_target & ~own
            share = (counts & others).sum().double() / others.sum().clamp(min=1)
            if not bool((counts & own).any()) and float((1 - share) ** own.sum()) < 1e-6:
                at, row = (int(x) for x in own.nonzero()[0])
                raise LeakError(f"row {row} of image {at} is a target by is_target, but does not count in the loss")
    return None


def check_gradients(case: LeakCase, generator: torch.Generator | None, tolerance: float) -> None:
    """No pixel that a row may not see has a gradient, and all that it must see have one."""
    out, cropped = case.out, case.cropped()
    weights = noise_like(out.predictions, generator)
    for step, image, rows in sorted(_alike(case), key=lambda group: group[:2]):
        total = (out.predictions[image, rows] * weights[image, rows]).sum()
        found = torch.autograd.grad(total, case.pixels, retain_graph=True, allow_unused=True)
        gradients = tuple(torch.zeros_like(x) if g is None else g for x, g in zip(case.pixels, found, strict=True))
        _judge(case, gradients, image, step, int(rows[0]), tolerance)
        if any(bool((gradient * outside).any()) for gradient, outside in zip(gradients, cropped, strict=True)):
            raise LeakError(f"{_who(step, image)} depends on pixels that the tokenizer crops")


def _alike(case: LeakCase) -> Iterator[tuple[int, int, Tensor]]:
    """Step, image and rows: those of an image and a step that may and must see the same."""
    for image in range(len(case.may)):
        rows = case.out.is_target[image].nonzero().flatten()
        if not len(rows):
            continue
        steps = case.out.step[image, rows, None]
        sees = torch.cat([steps, case.may[image, rows].long(), case.must[image, rows].long()], dim=1)
        kinds, kind = torch.unique(sees, dim=0, return_inverse=True)
        for number in range(len(kinds)):
            yield int(kinds[number, 0]), image, rows[kind == number]


def _judge(case: LeakCase, gradients: Pixels, image: int, step: int, row: int, tolerance: float) -> None:
    """Compare what rows of an image feel with what they may and must feel."""
    who, felt = _who(step, image), case.per_token(gradients)
    reach = torch.stack([gradient.abs().flatten(1).amax(1) for gradient in gradients]).amax(0)
    for other in (reach > tolerance * reach.max()).nonzero().flatten().tolist():
        if other != image:
            raise LeakError(f"{who} depends on pixels of image {other} in the same batch")
    moved = felt[image] > tolerance * felt.max()
    for position in (moved & ~case.may[image, row]).nonzero().flatten().tolist():
        raise LeakError(f"{who} depends on {case.position(image, position)}")
    # a trained model may look at a token very little: what must be felt is anything at all
    for position in ((felt[image] == 0) & case.must[image, row]).nonzero().flatten().tolist():
        raise LeakError(
            f"{who} does not depend on {case.position(image, position)}, which it should see "
            "(are weights zero? is a mask too strict?)"
        )


def _who(step: int, image: int) -> str:
    return f"by gradient: the prediction of step {step} in image {image}"


def check_noise(case: LeakCase, generator: torch.Generator | None, tolerance: float, when: str = "") -> None:
    """Put noise on some pixels at a time, and see which predictions move.

    With ``when``, only leaks are looked for: dropout may well cut what should be felt.
    """
    out, noise, before = case.out, case.noise(generator), case.before.predictions
    for change in _changes(case):
        after = case.predict(case.changed(noise, change.where))
        moved = (after - before).abs().amax(-1)
        scale = torch.where(out.is_target, moved, 0.0).amax(1, keepdim=True)
        has_moved = moved > smallest_move(before, scale, tolerance)
        leak = out.is_target & ~change.may_move & has_moved
        dead = out.is_target & change.must_move & ~has_moved
        for wrong, does in ((leak, "changes with"), (dead, "does not change with")):
            for image, row in [] if when and wrong is dead else wrong.nonzero()[:1].tolist():
                raise LeakError(
                    f"by noise{when}: the prediction of step {int(out.step[image, row])} in image {image} {does} "
                    f"{change.name(image)}" + (", which it should see" if wrong is dead else "")
                )


@dataclass(frozen=True)
class _Change:
    name: Callable[[int], str]
    where: Pixels
    may_move: Bool[Tensor, "b t"]
    must_move: Bool[Tensor, "b t"]


def _changes(case: LeakCase) -> Iterator[_Change]:
    """Pixels to change: those of no patch, those of one image, and those of positions that the same rows see."""
    nothing = torch.zeros_like(case.out.is_target)
    batch = torch.arange(len(nothing), device=nothing.device)
    yield _Change(lambda _: "pixels that the tokenizer crops", case.cropped(), nothing, nothing)
    for image in batch.tolist():
        own = batch == image
        where = tuple(own.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x) for x in case.pixels)
        whole = f"pixels of image {image} in the same batch"
        yield _Change(lambda _, whole=whole: whole, where, own[:, None] | nothing, nothing)  # type: ignore[misc]
    kind = torch.stack([_kinds(case, image) for image in batch.tolist()])
    for number in range(int(kind.max()) + 1):
        changed = kind == number
        there, first = changed.any(1), changed.long().argmax(1)
        may, must = (sees[batch, :, first] & there[:, None] for sees in (case.may, case.must))

        def name(image: int, first: Tensor = first) -> str:
            return f"pixels of {case.step_name(image, int(first[image]))}"

        yield _Change(name, case.where(changed), may, must)


def _kinds(case: LeakCase, image: int) -> Tensor:
    """A number for every position, by its step and the rows that may and must see it."""
    rows = case.out.is_target[image]
    sees = torch.cat([case.step_of[image, None], case.may[image, rows].long(), case.must[image, rows].long()])
    kinds: Tensor = torch.unique(sees.T, dim=0, return_inverse=True)[1]
    return kinds


def smallest_move(before: Float[Tensor, "b t p"], scale: Tensor, tolerance: float) -> Tensor:
    """Smallest move that is more than rounding: of the prediction itself, or of the largest move.

    In double precision rounding is so small that there is room for what many layers add to it.
    """
    steps = 1e4 if before.dtype == torch.float64 else 8
    rounding = steps * torch.finfo(before.dtype).eps * before.abs().amax(-1)
    return torch.maximum(tolerance * scale, rounding)
