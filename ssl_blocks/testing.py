"""Checks for users' own parts and objectives: does a prediction see what it must not?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_blocks.tokenizers import Tokenizer
from ssl_blocks.values import ObjectiveOutput, gather_tokens

_CONTEXT = -1  # step of tokens that are never predicted: they are given


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
        return [int(s) for s in self.step_of.unique()]

    def per_token(self, values: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n"]:
        """Largest absolute pixel value per token."""
        return self.tokenizer(values).abs().flatten(2).amax(-1)


def assert_no_leak(
    objective: Any,
    images: Float[Tensor, "b c h w"],
    *,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Prove that no prediction of step s depends on pixels of step s or later, and each does on every earlier step.

    Looks twice: by gradient, and by putting noise in place of pixels (which also finds leaks that pass no
    gradient). Both have a positive control: every earlier step must matter, so a check of a dead model cannot
    pass. Tokens that are never predicted count as given, before all steps. Also checks that images do not see
    each other, and that each target row is the target of its own ``index``.

    Args:
        objective: an objective with ``tokenizer`` and ``target``, whose output is an ``ObjectiveOutput``.
        images: ``[B, C, H, W]`` with ``B`` ≥ 2 to look across images; a handful, and a small model: the check
            runs the objective about three times per step. Plain noise will do.
        generator: source of randomness for draw and noise, on the images' device.
        tolerance: how much a prediction may move relative to its largest permitted move.

    Raises:
        LeakError: (an ``AssertionError``) naming the first image, step and kind of dependence that is wrong.
        ValueError: if nothing is predicted in this draw, so that nothing could be checked.

    Example:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=8, patch_size=2, depth=2, embed_dim=16, num_heads=2)
        >>> tokenizer = sb.PatchTokenizer(image_size=8, patch_size=2)
        >>> objective = sb.SegmentAutoregression(
        ...     encoder=encoder,
        ...     tokenizer=tokenizer,
        ...     partitioner=sb.SquarePartitioner(sides=(2,)),
        ...     target=sb.PixelTarget(tokenizer),
        ...     router=sb.LastLayerRouter(decoder_depth=1),
        ...     decoder=sb.SegmentDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2),
        ... )
        >>> assert_no_leak(objective, torch.randn(2, 3, 8, 8))
    """
    with _evaluating(objective):
        case = _prepare(objective, images, generator)
        _check_targets(case)
        _check_gradients(case, generator, tolerance)
        _check_images_apart(case, tolerance)
        _check_noise(case, generator, tolerance)


@contextmanager
def _evaluating(objective: Any) -> Iterator[None]:
    """Switch dropout and the like off for the check, module by module, and back on as it was."""
    modules = list(objective.modules()) if isinstance(objective, nn.Module) else []
    training = [m.training for m in modules]
    for module in modules:
        module.training = False
    try:
        yield
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
    rows, slots = out.is_target.nonzero(as_tuple=True)
    step_of[rows, out.index[rows, slots]] = out.step[rows, slots]
    return _Case(objective, tokenizer, images, draw, out, step_of)


def _check_targets(case: _Case) -> None:
    expected = gather_tokens(case.objective.target(case.images), case.out.index)
    wrong = ~torch.isclose(case.out.targets, expected, rtol=1e-4, atol=1e-5).all(-1) & case.out.is_target
    for image, row in wrong.nonzero()[:1].tolist():
        raise LeakError(
            f"target row {row} of image {image} is not the target of position {int(case.out.index[image, row])}, "
            "its own index: targets are shifted against predictions"
        )


def _rows_of(case: _Case, step: int) -> Bool[Tensor, "b t"]:
    return case.out.is_target & (case.out.step == step)


def _check_gradients(case: _Case, generator: torch.Generator | None, tolerance: float) -> None:
    out = case.out
    weights = torch.randn(out.predictions.shape, generator=generator, device=out.predictions.device)
    for step in [s for s in case.steps() if s != _CONTEXT]:
        rows = _rows_of(case, step)
        total = (out.predictions * weights * rows[..., None]).sum()
        (gradient,) = torch.autograd.grad(total, case.images, retain_graph=True, allow_unused=True)
        if gradient is None:
            gradient = torch.zeros_like(case.images)
        _judge(case, case.per_token(gradient), rows.any(1), step, "by gradient", tolerance)


def _judge(case: _Case, felt: Tensor, active: Tensor, step: int, how: str, tolerance: float) -> None:
    """Compare what predictions of ``step`` feel per token, ``[B, N]``, with what they may and must feel."""
    scale = felt.amax(1, keepdim=True)
    moved = felt > tolerance * scale
    for image in active.nonzero().flatten().tolist():
        later = moved[image] & (case.step_of[image] >= step)
        if bool(later.any()):
            position = int(later.nonzero()[0])
            raise LeakError(
                f"{how}: the prediction of step {step} in image {image} depends on position {position}, which has "
                f"step {int(case.step_of[image, position])}"
            )
        for earlier in case.step_of[image].unique().tolist():
            if earlier < step and not bool(moved[image][case.step_of[image] == earlier].any()):
                raise LeakError(
                    f"{how}: the prediction of step {step} in image {image} does not depend on any pixel of "
                    f"{_name(earlier)}, which it should see (are weights zero? is a mask too strict?)"
                )


def _name(step: int) -> str:
    return "the given tokens" if step == _CONTEXT else f"step {step}"


def _check_images_apart(case: _Case, tolerance: float) -> None:
    image = int(case.out.is_target.any(1).nonzero()[0])
    total = (case.out.predictions[image] * case.out.is_target[image, :, None]).square().sum()
    (gradient,) = torch.autograd.grad(total, case.images, retain_graph=True, allow_unused=True)
    if gradient is None:
        return  # nothing depends on pixels: the first step of a fully predicted image, say
    felt = case.per_token(gradient).amax(1)
    for other in (felt > tolerance * felt[image]).nonzero().flatten().tolist():
        if other != image:
            raise LeakError(f"predictions of image {image} depend on pixels of image {other} in the same batch")


@torch.no_grad()
def _check_noise(case: _Case, generator: torch.Generator | None, tolerance: float) -> None:
    """Exchange the pixels of one step at a time, and see which predictions move."""
    images, out = case.images.detach(), case.out
    patches = case.tokenizer(images)
    noise = torch.randn(patches.shape, generator=generator, device=patches.device, dtype=patches.dtype)
    before = case.objective(images, case.draw).predictions
    for changed in case.steps():
        where = (case.step_of == changed)[..., None, None, None]
        delta = case.tokenizer.untokenize(torch.where(where, noise, torch.zeros_like(patches)))
        moved = (case.objective(images + delta, case.draw).predictions - before).abs().amax(-1)
        scale = torch.where(out.is_target, moved, 0.0).amax(1, keepdim=True)
        may_move = out.step > changed
        touched = (case.step_of == changed).any(1)
        leak = out.is_target & ~may_move & (moved > _floor(before, scale, tolerance))
        dead = out.is_target & may_move & touched[:, None] & (moved <= _floor(before, scale, tolerance))
        for image, row in leak.nonzero()[:1].tolist():
            raise LeakError(
                f"by noise: the prediction of step {int(out.step[image, row])} in image {image} changes with pixels "
                f"of {_name(changed)}"
            )
        for image, row in dead.nonzero()[:1].tolist():
            raise LeakError(
                f"by noise: the prediction of step {int(out.step[image, row])} in image {image} does not change with "
                f"pixels of {_name(changed)}, which it should see"
            )


def _floor(before: Tensor, scale: Tensor, tolerance: float) -> Tensor:
    """Smallest move that is more than rounding: of the prediction itself, or of the largest move."""
    rounding = 8 * torch.finfo(before.dtype).eps * before.abs().amax(-1)
    return torch.maximum(tolerance * scale, rounding)
