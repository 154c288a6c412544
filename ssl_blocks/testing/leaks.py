"""Checks for users' own parts and objectives: does a prediction see what it must not?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ssl_blocks.objectives.combine import WeightedSum
from ssl_blocks.testing.leak_case import Images, LeakError, NotApplicableError, Subject, make_case
from ssl_blocks.testing.leak_checks import check_gradients, check_loss, check_noise, check_places, check_targets
from ssl_blocks.testing.role_case import RoleReport


def assert_no_leak(
    objective: Any,
    images: Images,
    *,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-6,
) -> RoleReport:
    """Prove that no prediction depends on pixels that it may not see, and each does on all that it should see.

    A prediction of step s may see positions of earlier steps, and those that are given: all that are never predicted,
    unless the output's ``given`` says which. A position that several rows predict, as overlapping target blocks do,
    may be seen after the last of their steps; blocks that are predicted separately share a step. What is neither given
    nor predicted may be seen by nothing. ``given`` per row says it all by itself. Targets may look at everything.

    Looks twice: by gradient, and by putting noise in place of pixels (which also finds leaks that pass no
    gradient). Both have a positive control: all that a prediction may see must matter, of other views excepted, so a
    check of a dead model cannot pass. Dropout is off, but noise is put in once more in training mode, where
    layers such as batch norm mix what they keep apart otherwise. Also checks
    that images do not see each other, that predictions do not know in which order later tokens will be read
    (where the draw is a ``Serialization``), that each target row is the target of its own ``index``, and that
    the loss counts the rows that ``is_target`` says.

    Of a `WeightedSum` every objective is looked at by itself, and through the pass that it shares. Of `Views` those are
    looked at that the tokenizer fits; their positions are counted view after view.

    What it cannot see: rows whose index and target are exchanged alike inside one step, a further term of the loss
    that does not pass through ``predictions``, and a draw that looks at pixels.

    Args:
        objective: an objective with ``tokenizer`` and ``target``, whose output is an ``ObjectiveOutput``, or a sum.
        images: ``[B, C, H, W]`` with ``B`` ≥ 2 to look across images, or `Views`; a handful, and a small model: the
            check runs the objective twice per step, and backwards once per step and image. Plain noise will do.
        generator: source of randomness for draw and noise, on the images' device.
        tolerance: how much a prediction may move relative to its largest permitted move.

    Returns:
        Names of the objectives that passed, and of those in a sum to which the check does not apply, with the reason.

    Raises:
        LeakError: (an ``AssertionError``) naming the first image, step and kind of dependence that is wrong.
        NotApplicableError: (a ``ValueError``) if the check applies to nothing here, with the reason.
        ValueError: if nothing is predicted in this draw, or images do not fit.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=8, patch_size=2, depth=2, embed_dim=16, num_heads=2)
        >>> objective = sb.randsac(
        ...     encoder=encoder,
        ...     tokenizer=sb.PatchTokenizer(image_size=8, patch_size=2),
        ...     partitioner=sb.SquarePartitioner(sides=(2,)),
        ...     decoder=sb.SegmentDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2),
        ... )
        >>> assert_no_leak(objective, torch.randn(2, 3, 8, 8)).passed
        ('SegmentPrediction',)
    """
    passed: list[str] = []
    left_out: dict[str, str] = {}
    for name, found in _subjects(objective, ""):
        if isinstance(found, str):
            left_out[name] = found
            continue
        try:
            _check(found, images, generator, tolerance)
        except LeakError as leak:
            raise LeakError(f"{name}: {leak}" if name else str(leak)) from None
        passed.append(found.name)
    if not passed:
        raise NotApplicableError(next(iter(left_out.values())))
    return RoleReport(tuple(passed), left_out)


def _check(subject: Subject, images: Images, generator: torch.Generator | None, tolerance: float) -> None:
    device = images.images[0].device if not isinstance(images, torch.Tensor) else images.device
    precise = torch.autocast(device.type, enabled=False)
    with precise, torch.enable_grad(), _modes_kept(subject.module) as set_training:
        set_training(False)
        case = make_case(subject, images, generator)
        check_targets(case)
        check_loss(case)
        check_gradients(case, generator, tolerance)
        check_noise(case, generator, tolerance)
        check_places(case, tolerance)
        set_training(True)
        check_noise(case, generator, tolerance, when=" in training mode")


def _subjects(objective: Any, name: str) -> Iterator[tuple[str, Subject | str]]:
    """What there is to look at, by name: an objective, or each in a sum; or why there is nothing."""
    if isinstance(objective, WeightedSum):
        for key, part in objective.parts.items():
            path = f"{name}.{key}".lstrip(".")
            yield from [(path, _with_shared(objective, part, path))] if part.reads_shared else _subjects(part, path)
        return
    reason = _why_not(objective)
    if reason:
        yield name or type(objective).__name__, reason
        return

    def draw(images: Images, generator: torch.Generator | None) -> Any:
        return objective.draw(_seen_by(objective, images), generator=generator)

    def compute(images: Images, draw: Any) -> Any:
        return objective(_seen_by(objective, images), draw)

    def target(images: Images) -> torch.Tensor:
        found: torch.Tensor = objective.target(_seen_by(objective, images))
        return found

    shown = name or type(objective).__name__
    takes_views = getattr(objective, "takes_views", False)
    yield name, Subject(shown, objective, objective.tokenizer, target, draw, compute, takes_views)


def _with_shared(whole: WeightedSum, part: Any, name: str) -> Subject | str:
    """An objective of a sum, together with the pass that it reads."""
    reason, shared = _why_not(part), whole.shared
    assert shared is not None
    if reason:
        return reason

    def draw(images: Images, generator: torch.Generator | None) -> Any:
        own = part.draw(_seen_by(part, images), generator=generator)
        return own, shared.draw(images, generator=generator)

    def compute(images: Images, draw: Any) -> Any:
        return part(_seen_by(part, images), draw[0], shared=shared(images, draw[1]))

    def target(images: Images) -> torch.Tensor:
        found: torch.Tensor = part.target(_seen_by(part, images))
        return found

    return Subject(name, whole, part.tokenizer, target, draw, compute, part.takes_views)


def _seen_by(objective: Any, images: Images) -> Any:
    """What is handed over, to objectives that are no `Objective`, too."""
    takes_views = getattr(objective, "takes_views", False)
    return images if isinstance(images, torch.Tensor) or takes_views else images.images[0]


def _why_not(objective: Any) -> str | None:
    """In a sentence, why nothing can leak; ``None`` where something can."""
    missing = [name for name in ("tokenizer", "target") if getattr(objective, name, None) is None]
    if not missing:
        return None
    return (
        f"{type(objective).__name__} has no {' and no '.join(missing)}: it predicts nothing of patches, so no pixel is "
        "hidden from it that a prediction could see (a joint embedding compares whole views)"
    )


@contextmanager
def _modes_kept(module: Any) -> Iterator[Callable[[bool], object]]:
    """Give out the switch between training and evaluation, and put every module back as it was afterwards."""
    modules = list(module.modules()) if isinstance(module, nn.Module) else []
    training = [m.training for m in modules]
    try:
        yield module.train if modules else lambda mode: None
    finally:
        for part, was in zip(modules, training, strict=True):
            part.training = was
