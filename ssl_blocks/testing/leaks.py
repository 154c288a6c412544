"""The leak test: does a prediction see what it must not?"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ssl_blocks.testing.leak_case import Images, LeakError, NotApplicableError, Subject
from ssl_blocks.testing.leak_function import function_subject
from ssl_blocks.testing.leak_looks import Looks
from ssl_blocks.testing.leak_subjects import is_objective, subjects_of
from ssl_blocks.testing.role_case import RoleReport


@dataclass(frozen=True)
class LeakReport(RoleReport):
    """What the leak test found.

    Attributes:
        passed: names of the objectives, or of the function, in which no leak was found.
        not_applicable: name of each objective that was left out, and why.
        leaks: one sentence for every look that found something; empty where nothing leaks.
        hints: what could not be looked at, and what was special.
        draws: how many random draws were looked at, an image each.
    """

    leaks: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    draws: int = 0


def check_leaks(
    function: Any,
    images: Images,
    *,
    patch_size: Any = None,
    module: nn.Module | None = None,
    draws: int = 128,
    compiled: bool = False,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-6,
) -> LeakReport:
    """Look for leaks in anybody's code, and report all that is found.

    The function gets images and returns what it predicts, beside what it should have predicted: `Predicted`, or a plain
    tuple ``(predictions, targets, index, step)`` or ``(predictions, targets, index, given)``. A Lightning module or a
    plain module becomes one in a line: ``watch_loss(model, model.criterion)``. Objectives of this library are taken as
    they are. What is looked at is told in `assert_no_leak`, which raises where this reports.

    Args:
        function: from images to `Predicted`; random choices by torch, numpy or Python's ``random`` are repeated.
        images: ``[B, C, H, W]``, a handful of them; plain noise will do. Objectives take `Views` as well.
        patch_size: pixels of a patch along each axis, or a tokenizer; ``None``: as many square patches as ``given`` has
            positions, or as large as a target.
        module: whose weights are shaken; ``None``: all modules that the function names.
        draws: images in the largest batch of random draws, each a draw of its own. With 128 there are batches of 4, 32
            and 128, and 100 draws more in other modes: 264 in all. So a leak in one draw of 50 is missed in one test of
            200, and one in 100 in one of 14.
        compiled: look at compiled code, too (Dynamo, seconds to minutes). A function that is compiled already is looked
            at as it is.
        generator: source of randomness, on the images' device.
        tolerance: how much a prediction may move relative to its largest permitted move.

    Raises:
        ValueError: if images are not finite, nothing is predicted, or rows do not fit the images.
        TypeError: if the function returns something else.

    Examples:
        >>> from functools import partial
        >>> from ssl_blocks.testing import Predicted
        >>> mixer = nn.Linear(16, 16)
        >>> def predict(images, honest=True):
        ...     patches = images.unfold(2, 2, 2).unfold(3, 2, 2).flatten(1, 3).flatten(2)  # [B, 16, 4], one channel
        ...     given = torch.rand(len(images), 16).argsort(1) < 8
        ...     seen = patches * given[..., None] if honest else patches
        ...     rows = mixer(seen.transpose(1, 2)).transpose(1, 2)
        ...     index = torch.arange(16).expand(len(images), -1)
        ...     return Predicted(rows, patches, index, given=given, is_target=~given)
        >>> images = torch.randn(2, 1, 8, 8)
        >>> check_leaks(predict, images).leaks
        ()
        >>> check_leaks(partial(predict, honest=False), images).leaks[0]  # doctest: +ELLIPSIS
        'predict: by gradient: the prediction of step 0 in image 0 depends on position ... of step 0'
    """
    looks: dict[str, Any] = {"draws": draws, "compiled": compiled, "generator": generator, "tolerance": tolerance}
    return _report(function, images, **looks, patch_size=patch_size, module=module)


def assert_no_leak(
    objective: Any,
    images: Images,
    *,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-6,
    draws: int = 128,
    compiled: bool = False,
) -> LeakReport:
    """Prove that no prediction depends on pixels that it may not see, and each does on all that it should see.

    A prediction of step s may see positions of earlier steps, and those that are given: all that are never predicted,
    unless the output's ``given`` says which. A position that several rows predict, as overlapping target blocks do,
    may be seen after the last of their steps; blocks that are predicted separately share a step. What is neither given
    nor predicted may be seen by nothing. ``given`` per row says it all by itself. Targets may look at everything.

    Looks twice: by gradient, and by putting noise in place of pixels (which also finds leaks that pass no
    gradient). Both have a positive control: all that a prediction may see must matter, of other views excepted, so a
    check of a dead model cannot pass. Weights are shaken meanwhile, in double precision, and put back to the bit: a
    branch that starts at zero leaks later. Batches of many draws follow, in double precision, in training mode, with
    the weights as they are, and under autocast, see ``draws`` of `check_leaks`. Also checks that images do not see each
    other, that predictions do not know where later tokens lie and follow the query of their own index (both where the
    draw is a ``Serialization``), that each target row is the target of its own ``index``, and that the loss counts the
    rows that ``is_target`` says.

    Of a `WeightedSum` every objective is looked at by itself, and through the pass that it shares. Of `Views` those are
    looked at that the tokenizer fits; their positions are counted view after view.

    What it cannot see: a further term of the loss that does not pass through ``predictions``, targets that hold other
    patches, a draw that looks at pixels (`noise_floor` sees the first two), and code that was not looked at, which
    ``hints`` of the report names.

    Args:
        objective: an objective with ``tokenizer`` and ``target``, whose output is an ``ObjectiveOutput``, or a sum.
        images: ``[B, C, H, W]`` with ``B`` ≥ 2 to look across images, or `Views`; a handful, and a small model: the
            check runs the objective about 70 times. Plain noise will do.
        generator: source of randomness for draw and noise, on the images' device.
        tolerance: how much a prediction may move relative to its largest permitted move.
        draws: images in the largest batch of draws.
        compiled: look at compiled code, too.

    Returns:
        Names of the objectives that passed, and of those in a sum to which the check does not apply, with the reason.

    Raises:
        LeakError: (an ``AssertionError``) naming the first image, step and kind of dependence that is wrong.
        NotApplicableError: (a ``ValueError``) if the check applies to nothing here, with the reason.
        ValueError: if nothing is predicted in this draw, or images do not fit or are not finite.

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
    looks: dict[str, Any] = {"draws": draws, "compiled": compiled, "generator": generator, "tolerance": tolerance}
    return _report(objective, images, **looks, stop=True)


def _report(
    function: Any, images: Images, *, patch_size: Any = None, module: Any = None, stop: bool = False, **looks: Any
) -> LeakReport:
    """Look at all there is; with ``stop`` the first leak is an error."""
    passed: list[str] = []
    leaks: list[str] = []
    hints: list[str] = []
    left_out: dict[str, str] = {}
    tried = 0
    found: Any = subjects_of(function, "") if is_objective(function) else None
    if found is None:
        own = function_subject(function, images, patch_size=patch_size, module=module)
        found = [(own.name, own)]
    for name, subject in found:
        if not isinstance(subject, Subject):
            left_out[name] = subject
            continue
        look, before = Looks(subject, images, **looks), len(leaks)
        for leak in look.run():
            leaks.append(f"{name}: {leak}" if name else leak)
            if stop:
                raise LeakError(leaks[0]) from None
        tried += look.tried
        hints += [f"{name}: {hint}" if name else hint for hint in look.hints]
        passed += [subject.name] if len(leaks) == before else []
    if left_out and not passed and not leaks:
        raise NotApplicableError(next(iter(left_out.values())))
    return LeakReport(tuple(passed), left_out, tuple(leaks), tuple(hints), tried)
