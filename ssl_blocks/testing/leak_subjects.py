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
            yield from [(path, _with_shared(objective, part, path))] if part.reads_shared else subjects_of(part, path)
        return
    reason = why_not(objective)
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
    yield (
        name,
        Subject(shown, nn.ModuleList(modules_of(objective)), objective.tokenizer, target, draw, compute, takes_views),
    )


def _with_shared(whole: WeightedSum, part: Any, name: str) -> Subject | str:
    """An objective of a sum, together with the pass that it reads."""
    reason, shared = why_not(part), whole.shared
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

    return Subject(name, nn.ModuleList([whole]), part.tokenizer, target, draw, compute, part.takes_views)


def _seen_by(objective: Any, images: Images) -> Any:
    """What is handed over, to objectives that are no `Objective`, too."""
    takes_views = getattr(objective, "takes_views", False)
    return images if isinstance(images, torch.Tensor) or takes_views else images.images[0]


def why_not(objective: Any) -> str | None:
    """In a sentence, why nothing can leak; ``None`` where something can."""
    missing = [name for name in ("tokenizer", "target") if getattr(objective, name, None) is None]
    if not missing:
        return None
    return (
        f"{type(objective).__name__} has no {' and no '.join(missing)}: it predicts nothing of patches, so no pixel is "
        "hidden from it that a prediction could see (a joint embedding compares whole views)"
    )
