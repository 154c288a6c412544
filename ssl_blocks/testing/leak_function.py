"""Anybody's code for the leak test: what a function returns, and how a training step becomes such a function."""

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_blocks.parts.tokenize import PatchTokenizer, Sizes, Tokenizer, same_length
from ssl_blocks.testing.leak_case import Images, Subject
from ssl_blocks.testing.precise import seeded
from ssl_blocks.values import ObjectiveOutput


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a function under test returns: a row for everything that it predicts.

    What a row may see: positions that are given, and those of earlier steps. Nothing else.

    Args:
        predictions: ``[B, t, P]``, as the loss gets them.
        targets: ``[B, t, P]``, as the loss gets them.
        index: ``[B, t]`` int64, raster position of the patch that each row speaks of; ``None``: found by looking for
            the targets among the patches, raw or normalised.
        step: ``[B, t]`` int64, when each row is predicted (for raster order: the position); ``None``: all at once.
        given: ``[B, N]`` bool, ``True`` at positions that every row may see; ``None``: those that are never predicted.
            ``[B, t, N]`` says of every row all that it may see.
        is_target: ``[B, t]`` bool, rows that count in the loss; ``None``: all.
        loss: scalar; ``None``: the mean squared error of the rows that count.

    Examples:
        >>> Predicted(torch.zeros(2, 3, 8), torch.zeros(2, 3, 8), given=torch.ones(2, 4, dtype=torch.bool)).step is None
        True
    """

    predictions: Tensor
    targets: Tensor
    index: Tensor | None = None
    step: Tensor | None = None
    given: Tensor | None = None
    is_target: Tensor | None = None
    loss: Tensor | None = None


Function = Callable[[Any], Predicted | ObjectiveOutput | tuple[Tensor, ...]]


def function_subject(
    function: Function, images: Images, *, patch_size: Sizes | Tokenizer | None, module: nn.Module | None
) -> Subject:
    """A function as the leak test looks at it: its draw is the seed of torch's, numpy's and Python's random numbers."""
    named = function.func if isinstance(function, functools.partial) else function
    name = getattr(named, "__name__", type(named).__name__)
    if not isinstance(images, Tensor):
        raise TypeError(f"images of {type(images).__name__} must be a tensor [B, C, H, W] where a function is tested")
    found = modules_of(function) if module is None else [module]
    own = nn.ModuleList(dict.fromkeys(found))

    def run(x: Any, seed: int) -> Any:
        with seeded(seed, x.device):
            return function(x)

    tokenizer: Tokenizer
    if patch_size is None:
        with torch.no_grad():
            tokenizer = _guessed(as_predicted(run(images, 0), name), images, name)
    else:
        tokenizer = patch_size if isinstance(patch_size, Tokenizer) else covering(images, patch_size)

    def draw(x: Any, generator: torch.Generator | None) -> int:
        return int(torch.randint(2**31, (), generator=generator, device=x.device))

    def compute(x: Any, seed: int) -> ObjectiveOutput:
        return as_output(run(x, seed), x, tokenizer, name)

    return Subject(name, own, tokenizer, None, draw, compute)


def covering(images: Tensor, patch_size: Sizes) -> PatchTokenizer:
    """A tokenizer of whole patches from the top left; what is left of an image belongs to none."""
    size = tuple(images.shape[2:])
    _, patch = same_length(image_size=size, patch_size=patch_size)
    covered = tuple(length // side * side for length, side in zip(size, patch, strict=True))
    tokenizer = PatchTokenizer(image_size=covered, patch_size=patch, channels=images.shape[1])
    tokenizer.image_size = size
    return tokenizer


def _guessed(rows: Predicted, images: Tensor, name: str) -> PatchTokenizer:
    """Square patches, as many as ``given`` has positions, or as large as a target."""
    if rows.given is not None:
        area = math.prod(images.shape[2:]) / rows.given.shape[-1]
    else:
        area = rows.targets.shape[-1] / images.shape[1]
    side = round(area ** (1 / (images.ndim - 2)))
    if side < 1 or side ** (images.ndim - 2) != area or any(length % side for length in images.shape[2:]):
        raise ValueError(f"patch_size=None: give it, for it cannot be told from what {name} returns")
    return covering(images, side)


def as_predicted(found: Any, name: str) -> Predicted:
    """Read what a function returned."""
    if isinstance(found, Predicted):
        return found
    if isinstance(found, tuple) and 2 <= len(found) <= 4 and all(x is None or isinstance(x, Tensor) for x in found):
        predictions, targets, index, sees = (*found, None, None)[:4]
        by = {} if sees is None else {"given" if sees.dtype == torch.bool else "step": sees}
        return Predicted(predictions, targets, index, **by)
    kind = f"a tuple of {len(found)}" if isinstance(found, tuple) else type(found).__name__
    raise TypeError(
        f"{name} must return ssl_blocks.testing.Predicted, or a tuple (predictions [B, t, P], targets [B, t, P], "
        f"index [B, t], step [B, t] or given [B, N]), got {kind}"
    )


def as_output(found: Any, images: Tensor, tokenizer: Tokenizer, name: str) -> ObjectiveOutput:
    """What a function returned, with all that it left out."""
    if isinstance(found, ObjectiveOutput):
        return found
    rows = as_predicted(found, name)
    if rows.predictions.ndim != 3 or rows.predictions.shape != rows.targets.shape:
        shapes = f"{tuple(rows.predictions.shape)} and {tuple(rows.targets.shape)}"
        raise ValueError(f"{name} must return predictions and targets of one shape [B, t, P], got {shapes}")
    index = position_of(rows.targets, images, tokenizer) if rows.index is None else rows.index
    shape, tokens = tuple(rows.predictions.shape[:2]), tokenizer.grid.num_tokens
    for field, value in (("index", index), ("step", rows.step), ("is_target", rows.is_target)):
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"{name} must return {field} of shape [B, t] = {shape}, got {tuple(value.shape)}")
    if rows.given is not None and tuple(rows.given.shape) not in ((shape[0], tokens), (*shape, tokens)):
        raise ValueError(
            f"{name} must return given of shape [B, N] = {(shape[0], tokens)} or [B, t, N], "
            f"got {tuple(rows.given.shape)}"
        )
    ones = torch.ones_like(index, dtype=torch.bool)
    is_target = ones if rows.is_target is None else rows.is_target
    errors = torch.where(is_target[..., None], rows.predictions - rows.targets, 0.0).square()
    mean = errors.sum() / (is_target.sum().clamp(min=1) * rows.targets.shape[-1])
    return ObjectiveOutput(
        loss=mean if rows.loss is None else rows.loss,
        predictions=rows.predictions,
        targets=rows.targets,
        index=index,
        step=torch.zeros_like(index) if rows.step is None else rows.step,
        is_target=is_target,
        draw=None,
        given=rows.given,
    )


def position_of(targets: Float[Tensor, "b t p"], images: Tensor, tokenizer: Tokenizer) -> Int[Tensor, "b t"]:
    """Which patch each target is: the one that it is but for a shift and a scale, its values in any usual order."""
    best, place = _matches(targets, images, tokenizer)
    wrong = best < 0.99
    for image, row in wrong.nonzero()[:1].tolist():
        raise ValueError(
            f"index=None: target row {row} of image {image} is none of the {tokenizer.grid.num_tokens} patches, raw or "
            "normalised, so tell which position each row speaks of (or another patch_size)"
        )
    return place


def check_index(targets: Tensor, index: Tensor, images: Tensor, tokenizer: Tokenizer) -> tuple[int, int, int] | None:
    """Image, row and true position of the first target that is another patch than its index says."""
    if targets.shape[-1] != math.prod(tokenizer.patch) * tokenizer.channels:
        return None
    best, place = _matches(targets, images, tokenizer)
    for image, row in ((best > 0.99) & (place != index)).nonzero()[:1].tolist():
        return image, row, int(place[image, row])
    return None


def _matches(targets: Tensor, images: Tensor, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    patches = tokenizer(images).detach()
    orders = (patches.movedim(2, -1).flatten(2), patches.flatten(2))  # (y, x, c), and (c, y, x)
    rows = _direction(targets.detach())
    fitting = [_direction(flat.to(rows.dtype)) for flat in orders if flat.shape[-1] == rows.shape[-1]]
    alike = [rows @ flat.transpose(1, 2) for flat in fitting]
    if not alike:
        blank = torch.zeros(targets.shape[:2], device=targets.device)
        return blank, blank.long()
    best, place = torch.stack(alike).amax(0).max(-1)
    return best, place


def _direction(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True) if x.shape[-1] > 1 else x
    return nn.functional.normalize(centred, dim=-1)


def modules_of(value: Any, depth: int = 2) -> list[nn.Module]:
    """Modules that a function uses: itself, its object, and what it names from around it."""
    if isinstance(value, nn.Module):
        return [value]
    inner: list[Any] = []
    if isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif inspect.ismethod(value):
        inner = [value.__self__, value.__func__]
    elif inspect.isfunction(value):
        named = inspect.getclosurevars(inspect.unwrap(value))
        inner = [*named.nonlocals.values(), *named.globals.values()]
    elif isinstance(value, list | tuple):
        inner = list(value)
    elif isinstance(value, Mapping):
        inner = list(value.values())
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not inspect.ismodule(value):
        inner = list(vars(value).values())
    return [found for one in inner if depth for found in modules_of(one, depth - 1)]


def watch_loss(
    step: nn.Module | Callable[[Any], Any],
    loss: nn.Module,
    *,
    batch: Callable[[Tensor], Any] | None = None,
    call: int = 0,
) -> Callable[[Tensor], Predicted]:
    """Make a function for `check_leaks` out of a training step: rows are what its loss module is called with.

    Positions are found by looking for the targets among the patches of the images. What is never predicted counts as
    given, so this fits masked prediction; where one token is predicted after the other, write a function that returns
    `Predicted` with ``step``.

    Args:
        step: a Lightning module, whose ``training_step`` is run; another module, which is called; or a function.
        loss: the module that is called with ``(predictions, targets)``, such as ``model.criterion``.
        batch: from images ``[B, C, H, W]`` to the batch that the step takes; ``None``: the images themselves, or
            ``([images], None, None)`` where there is a ``training_step``, as lightly's loaders give them.
        call: which call of the loss in a step, from 0.

    Examples:
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inner, self.criterion = nn.Linear(12, 12), nn.MSELoss()
        ...
        ...     def forward(self, images):
        ...         patches = images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
        ...         return self.criterion(self.inner(patches), patches)
        >>> model = Model()
        >>> rows = watch_loss(model, model.criterion)(torch.randn(2, 3, 4, 4))
        >>> rows.predictions.shape
        torch.Size([2, 4, 12])
    """
    training_step = getattr(step, "training_step", None)

    def rows(images: Tensor) -> Predicted:
        seen: list[tuple[Any, ...]] = []
        given: Any = images if batch is None else batch(images)
        handle = loss.register_forward_hook(lambda _, inputs, out: seen.append((*inputs[:2], out)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Lightning's, of a log without a trainer
                if training_step is None:
                    total = step(given)
                else:
                    total = training_step(([images], None, None) if batch is None else given, 0)
        finally:
            handle.remove()
        if len(seen) <= call:
            raise ValueError(f"call={call}: the loss was called {len(seen)} times with (predictions, targets)")
        predictions, targets, own = seen[call]
        total = total.get("loss") if isinstance(total, Mapping) else total
        return Predicted(predictions, targets, loss=total if isinstance(total, Tensor) and not total.ndim else own)

    rows.__name__ = type(step).__name__ if isinstance(step, nn.Module) else getattr(step, "__name__", "step")
    return rows
