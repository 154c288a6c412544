"""What the leak test looks at in an objective, or in each of a sum."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ssl_blocks.objectives.combine import WeightedSum
from ssl_blocks.objectives.objective import Objective
from ssl_blocks.testing.leak_case import Images, Subject
from ssl_blocks.testing.leak_function import modules_of


def is_objective(value: Any) -> bool:
    """Whether something is to be asked for draws, and not a plain function from images to predictions."""
    own = callable(getattr(value, "draw", None)) and hasattr(value, "tokenizer")
    return own or isinstance(value, Objective)


def subjects_of(objective: Any, name: str) -> Iterator[tuple[str, Subject | str]]:
    """What there is to look at, by name: an objective, or each in a sum; or why there is nothing."""
    if isinstance(objective, WeightedSum):
        for key, part in objective.parts.items():
            path = f"{name}.{key}".lstrip(".")
            yield from [(path, _subject(part, path, objective))] if part.reads_shared else subjects_of(part, path)
        return
    shown = name or type(objective).__name__
    found = _subject(objective, shown)
    yield name if isinstance(found, Subject) else shown, found


def _subject(objective: Any, name: str, whole: WeightedSum | None = None) -> Subject | str:
    """An objective, together with the pass of the sum that it reads; or why there is nothing to look at."""
    reason = why_not(objective)
    if reason:
        return reason
    takes_views = getattr(objective, "takes_views", False)
    shared: Any = None if whole is None else whole.shared

    def seen(images: Images) -> Any:
        return images if isinstance(images, torch.Tensor) or takes_views else images.images[0]

    def draw(images: Images, generator: torch.Generator | None) -> Any:
        own = objective.draw(seen(images), generator=generator)
        return own if whole is None else (own, shared.draw(images, generator=generator))

    def compute(images: Images, draw: Any) -> Any:
        if whole is None:
            return objective(seen(images), draw)
        return objective(seen(images), draw[0], shared=shared(images, draw[1]))

    def target(images: Images) -> torch.Tensor:
        found: torch.Tensor = objective.target(seen(images))
        return found

    modules = nn.ModuleList(modules_of(objective if whole is None else whole))
    return Subject(name, modules, objective.tokenizer, target, draw, compute, takes_views)


def why_not(objective: Any) -> str | None:
    """In a sentence, why nothing can leak; ``None`` where something can."""
    missing = [name for name in ("tokenizer", "target") if getattr(objective, name, None) is None]
    if not missing:
        return None
    return (
        f"{type(objective).__name__} has no {' and no '.join(missing)}: it predicts nothing of patches, so no pixel is "
        "hidden from it that a prediction could see (a joint embedding compares whole views)"
    )
