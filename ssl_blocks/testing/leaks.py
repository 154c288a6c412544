"""Checks for users' own parts and objectives: does a prediction see what it must not?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.values import ObjectiveOutput, Serialization, gather_tokens

_CONTEXT = -1  # step of tokens that are given
_HIDDEN = 2**40  # step of tokens that are neither given nor predicted: nothing may see them


class LeakError(AssertionError):
    """A prediction sees pixels that it must not, or misses pixels that it must see."""


@dataclass(frozen=True)
class _Case:
    objective: Any
    tokenizer: Tokenizer
    images: Tensor
    draw: Any
    out: ObjectiveOutput
    step_of: Int[Tensor, "b n"]

    def steps(self) -> list[int]:
        """Steps that occur, the given tokens' -1 included."""
        return [int(s) for s in torch.unique(self.step_of)]

    def per_token(self, values: Float[Tensor, "b c *s"]) -> Float[Tensor, "b n"]:
        """Largest absolute pixel value per token."""
        return self.tokenizer(values).abs().flatten(2).amax(-1)

    def outside(self) -> Bool[Tensor, "1 c *s"]:
        """Pixels that belong to no patch: those that the tokenizer crops."""
        return self.tokenizer.untokenize(self.tokenizer(torch.ones_like(self.images[:1]))) == 0

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "b c *s"], draw: Any = None) -> Float[Tensor, "b t p"]:
        """Predict with the same dropout in every call, and leave buffers as they were."""
        buffers = list(self.objective.buffers()) if isinstance(self.objective, nn.Module) else []
        state = [buffer.clone() for buffer in buffers]
        with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
            torch.manual_seed(0)
            predictions: Tensor = self.objective(images, self.draw if draw is None else draw).predictions
        for buffer, was in zip(buffers, state, strict=True):
            if not torch.equal(buffer, was):
                buffer.copy_(was)
        return predictions


def assert_no_leak(
    objective: Any,
    images: Float[Tensor, "b c *s"],
    *,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-6,
) -> None:
    """Prove that no prediction of step s depends on pixels of step s or later, and each does on every earlier step.

    Looks twice: by gradient, and by putting noise in place of pixels (which also finds leaks that pass no
    gradient). Both have a positive control: every earlier token must matter, so a check of a dead model cannot
    pass. Tokens that are never predicted count as given, before all steps, unless the output's ``given`` says which
    are; the others must be seen by nothing. Dropout is off, but noise is put in once more in training mode, where
    layers such as batch norm mix what they keep apart otherwise. Also checks
    that images do not see each other, that predictions do not know in which order later tokens will be read
    (where the draw is a ``Serialization``), that each target row is the target of its own ``index``, and that
    the loss counts the rows that ``is_target`` says.

    What it cannot see: rows whose index and target are exchanged alike inside one step, a further term of the loss
    that does not pass through ``predictions``, and a draw that looks at pixels.

    Args:
        objective: an objective with ``tokenizer`` and ``target``, whose output is an ``ObjectiveOutput``.
        images: ``[B, C, H, W]`` with ``B`` ≥ 2 to look across images; a handful, and a small model: the check
            runs the objective twice per step, and backwards once per step and image. Plain noise will do.
        generator: source of randomness for draw and noise, on the images' device.
        tolerance: how much a prediction may move relative to its largest permitted move.

    Raises:
        LeakError: (an ``AssertionError``) naming the first image, step and kind of dependence that is wrong.
        ValueError: if the objective has no target, or nothing is predicted in this draw, so that nothing could be
            checked.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=8, patch_size=2, depth=2, embed_dim=16, num_heads=2)
        >>> objective = sb.randsac(
        ...     encoder=encoder,
        ...     tokenizer=sb.PatchTokenizer(image_size=8, patch_size=2),
        ...     partitioner=sb.SquarePartitioner(sides=(2,)),
        ...     decoder=sb.SegmentDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2),
        ... )
        >>> assert_no_leak(objective, torch.randn(2, 3, 8, 8))
    """
    if getattr(objective, "target", None) is None or getattr(objective, "tokenizer", None) is None:
        raise ValueError(
            f"{type(objective).__name__} has no target: check the objectives in it one by one, and those that predict "
            "nothing of patches by tests of their own"
        )
    precise = torch.autocast(images.device.type, enabled=False)
    with precise, torch.enable_grad(), _modes_kept(objective) as set_training:
        set_training(False)
        case = _prepare(objective, images, generator)
        _check_targets(case)
        _check_loss(case)
        _check_gradients(case, generator, tolerance)
        _check_noise(case, generator, tolerance)
        _check_places(case, tolerance)
        set_training(True)
        _check_noise(case, generator, tolerance, when=" in training mode")


@contextmanager
def _modes_kept(objective: Any) -> Iterator[Callable[[bool], object]]:
    """Give out the switch between training and evaluation, and put every module back as it was afterwards."""
    modules = list(objective.modules()) if isinstance(objective, nn.Module) else []
    training = [m.training for m in modules]
    try:
        yield objective.train if modules else lambda mode: None
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was


def _prepare(objective: Any, images: Tensor, generator: torch.Generator | None) -> _Case:
    images = images.detach().clone().requires_grad_()
    draw = objective.draw(images, generator=generator)
    out = objective(images, draw)
    if not bool(out.is_target.any()):
        raise ValueError("nothing is predicted in this draw: give more images or more segments")
    tokenizer: Tokenizer = objective.tokenizer
    step_of = torch.full((images.shape[0], tokenizer.grid.num_tokens), _CONTEXT, device=images.device)
    if out.given is not None:
        step_of = torch.where(out.given, step_of, _HIDDEN)
    rows, slots = out.is_target.nonzero(as_tuple=True)
    step_of[rows, out.index[rows, slots]] = out.step[rows, slots]
    case = _Case(objective, tokenizer, images, draw, out, step_of)
    if not torch.allclose(case.predict(images), out.predictions, rtol=1e-3, atol=1e-4):
        raise LeakError(
            "predictions differ between two calls with the same images and draw: does forward use its draw?"
        )
    return case


def _check_targets(case: _Case) -> None:
    expected = gather_tokens(case.objective.target(case.images), case.out.index)
    wrong = ~torch.isclose(case.out.targets, expected, rtol=1e-4, atol=1e-5).all(-1) & case.out.is_target
    for image, row in wrong.nonzero()[:1].tolist():
        raise LeakError(
            f"target row {row} of image {image} is not the target of position {int(case.out.index[image, row])}, "
            "its own index: targets are shifted against predictions"
        )


def _check_loss(case: _Case) -> None:
    (gradient,) = torch.autograd.grad(case.out.loss, case.out.predictions, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise LeakError("the loss is not computed from the predictions of the output, so nothing can be said of it")
    counts = (gradient != 0).any(-1)
    for image, row in (counts != case.out.is_target).nonzero()[:1].tolist():
        said = "is no target" if counts[image, row] else "is a target"
        does = "counts" if counts[image, row] else "does not count"
        raise LeakError(f"row {row} of image {image} {said} by is_target, but {does} in the loss")


def _check_gradients(case: _Case, generator: torch.Generator | None, tolerance: float) -> None:
    out, outside = case.out, case.outside()
    weights = torch.randn(out.predictions.shape, generator=generator, device=out.predictions.device)
    for step in [s for s in case.steps() if s not in (_CONTEXT, _HIDDEN)]:
        rows = out.is_target & (out.step == step)
        for image in rows.any(1).nonzero().flatten().tolist():
            total = (out.predictions[image] * weights[image] * rows[image, :, None]).sum()
            (gradient,) = torch.autograd.grad(total, case.images, retain_graph=True, allow_unused=True)
            if gradient is None:
                gradient = torch.zeros_like(case.images)
            _judge(case, case.per_token(gradient), image, step, tolerance)
            if bool((gradient * outside).any()):
                raise LeakError(f"{_who(step, image)} depends on pixels that the tokenizer crops")


def _judge(case: _Case, felt: Float[Tensor, "b n"], image: int, step: int, tolerance: float) -> None:
    """Compare the tokens that predictions of ``step`` in ``image`` feel with those that they may and must feel."""
    moved = felt > tolerance * felt.max()
    who, step_of = _who(step, image), case.step_of[image]
    for other in moved.any(1).nonzero().flatten().tolist():
        if other != image:
            raise LeakError(f"{who} depends on pixels of image {other} in the same batch")
    for position in (moved[image] & (step_of >= step)).nonzero().flatten().tolist():
        raise LeakError(f"{who} depends on position {position} of {_name(int(step_of[position]))}")
    # a trained model may look at a token very little: what must be felt is anything at all
    for position in ((felt[image] == 0) & (step_of < step)).nonzero().flatten().tolist():
        raise LeakError(
            f"{who} does not depend on position {position} of {_name(int(step_of[position]))}, which it should see "
            "(are weights zero? is a mask too strict?)"
        )


def _name(step: int) -> str:
    names = {_CONTEXT: "the given tokens", _HIDDEN: "tokens that are neither given nor predicted"}
    return names.get(step, f"step {step}")


def _who(step: int, image: int) -> str:
    return f"by gradient: the prediction of step {step} in image {image}"


def _check_noise(case: _Case, generator: torch.Generator | None, tolerance: float, when: str = "") -> None:
    """Put noise on some pixels at a time, and see which predictions move.

    With ``when``, only leaks are looked for: dropout may well cut what should be felt.
    """
    images, out = case.images.detach(), case.out
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    before = case.predict(images)
    for change in _changes(case):
        moved = (case.predict(images + noise * change.where) - before).abs().amax(-1)
        scale = torch.where(out.is_target, moved, 0.0).amax(1, keepdim=True)
        has_moved = moved > _floor(before, scale, tolerance)
        leak = out.is_target & ~change.may_move & has_moved
        dead = out.is_target & change.must_move & ~has_moved
        for wrong, does in ((leak, "changes with"), (dead, "does not change with")):
            for image, row in [] if when and wrong is dead else wrong.nonzero()[:1].tolist():
                raise LeakError(
                    f"by noise{when}: the prediction of step {int(out.step[image, row])} in image {image} {does} "
                    f"{change.name}" + (", which it should see" if wrong is dead else "")
                )


@dataclass(frozen=True)
class _Change:
    name: str
    where: Bool[Tensor, "_ _ *s"]
    may_move: Bool[Tensor, "b t"]
    must_move: Bool[Tensor, "b t"]


def _changes(case: _Case) -> Iterator[_Change]:
    """Pixels to change: those of no patch, those of one image, and those of one step."""
    out, nothing = case.out, torch.zeros_like(case.out.is_target)
    images = torch.arange(len(out.step), device=out.step.device)
    outside = case.outside()
    yield _Change("pixels that the tokenizer crops", outside, nothing, nothing)
    for image in images.tolist():
        own = images == image
        name = f"pixels of image {image} in the same batch"
        yield _Change(name, own.reshape(-1, *[1] * (case.images.ndim - 1)), own[:, None] | nothing, nothing)
    patches = torch.ones_like(case.tokenizer(case.images.detach()))
    for step in case.steps():
        changed = case.step_of == step
        where = case.tokenizer.untokenize(patches * changed.reshape(*changed.shape, *[1] * (patches.ndim - 2))) != 0
        later = out.step > step
        yield _Change(f"pixels of {_name(step)}", where, later, later & changed.any(1)[:, None])


def _check_places(case: _Case, tolerance: float) -> None:
    """Exchange the last two steps of the draw: no earlier prediction may know where later tokens lie."""
    draw, images, out = case.draw, case.images.detach(), case.out
    if not isinstance(draw, Serialization) or len({*(draw.step_sizes or ())[-2:]}) > 1:
        return
    last = draw.step.amax(1, keepdim=True)
    key, slots = (draw.step + 2 * (draw.step == last - 1)).sort(dim=1, stable=True)
    step = torch.where(key == last, last - 1, key.minimum(last))
    before = case.predict(images)
    after = case.predict(images, replace(draw, order=draw.order.gather(1, slots), step=step))
    moved = (after - before).abs().amax(-1)
    early = out.is_target & (out.step < last - 1)
    leak = early & (moved > _floor(before, moved.amax(1, keepdim=True), tolerance))
    for image, row in leak.nonzero()[:1].tolist():
        raise LeakError(
            f"the prediction of step {int(out.step[image, row])} in image {image} changes when the last two steps are "
            "exchanged: it knows where later tokens lie"
        )


def _floor(before: Tensor, scale: Tensor, tolerance: float) -> Tensor:
    """Smallest move that is more than rounding: of the prediction itself, or of the largest move."""
    rounding = 8 * torch.finfo(before.dtype).eps * before.abs().amax(-1)
    return torch.maximum(tolerance * scale, rounding)
