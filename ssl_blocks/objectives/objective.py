"""What a training loop asks of an objective, and the plain answers to it."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.encoders.protocol import FeatureEncoder
from ssl_blocks.grid import Grid
from ssl_blocks.objectives.life_cycle import KNOWN, find_parts, tell
from ssl_blocks.parts.average import MovingAverage
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.values import ObjectiveOutput, Progress, Views


class Objective(nn.Module, ABC):
    """A pretraining objective: random choices, a loss, and a life cycle. Inherit to write your own.

    A subclass sets ``self.encoder`` and, where it cuts images into patches, ``self.tokenizer``; and it defines ``draw``
    and ``forward``. A loop calls ``before_step`` and ``after_step`` around every optimizer step: they reach every part
    of the objective that has such a method, once, wherever it sits. So a part that follows a schedule or the weights,
    such as `MovingAverage`, does so by itself.

    Attributes:
        encoder: what is trained.
        tokenizer: how images are cut; ``None`` for objectives that hand whole images to their encoder.
        takes_views: whether the objective takes `Views`; others get the first global view.
        reads_shared: whether ``forward`` takes ``shared=``, the pass that objectives of a `WeightedSum` share.
        per_process: whether statistics of a batch (contrasts, covariances, nearest neighbours) are of the images alone
            that a process has at a time. A part may say it instead; a run tells its user.
        per_part: whether they are of all processes (`ssl_blocks.parts.gathered`), but of an accumulated part at a time.
    """

    encoder: FeatureEncoder
    tokenizer: Tokenizer | None = None
    takes_views: bool = False
    reads_shared: bool = False
    per_process: bool = False
    per_part: bool = False

    @abstractmethod
    def draw(self, images: Any, *, generator: torch.Generator | None = None) -> Any:
        """Make every random choice for a batch of images ``[B, C, H, W]``, or of `Views`."""

    @abstractmethod
    def forward(self, images: Any, draw: Any = None) -> ObjectiveOutput:
        """Compute loss and predictions; deterministic where ``draw`` is given."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != KNOWN}

    def before_step(self, progress: Progress) -> None:
        """Let every part set what follows a schedule; called before every optimizer step."""
        tell(self, "before_step", progress)

    def after_step(self) -> None:
        """Let every part update what follows the weights; called after every optimizer step."""
        tell(self, "after_step")

    def no_weight_decay(self) -> set[str]:
        """Collect what the parts name: positions, class and register tokens."""
        names: set[str] = set()
        for path, part in self.named_modules():
            own = getattr(part, "no_weight_decay", None)
            if part is not self and callable(own):
                names |= {f"{path}.{name}" for name in own()}
        followers = tuple(f"{path}." for path, part in self.named_modules() if isinstance(part, MovingAverage))
        return {name for name, _ in self.named_parameters() if name in names and not name.startswith(followers)}

    def measure(self, images: Any) -> dict[str, Float[Tensor, ""]]:
        """How well the objective itself is met on held-out images, by name; nothing by default.

        A run averages it over its test images, and reports it. Choices that training makes at random are left out.
        """
        return {}

    def export_encoder(self) -> FeatureEncoder:
        """The encoder as it stands."""
        return self.encoder


def seen_by(objective: Objective, images: Tensor | Views) -> Any:
    """What an objective gets of images: `Views` where it takes them, else the first global view."""
    return images.images[0] if isinstance(images, Views) and not objective.takes_views else images


def beside_zero(
    loss: Tensor, rows: Float[Tensor, "b r p"], *, draw: Any = None, metrics: dict[str, Tensor] | None = None
) -> ObjectiveOutput:
    """An output whose rows are numbered, count all, and have zeros for targets: losses, or embeddings."""
    number = torch.arange(rows.shape[1], device=rows.device).expand(len(rows), -1)
    return ObjectiveOutput(
        loss=loss,
        predictions=rows,
        targets=torch.zeros_like(rows),
        index=number,
        step=torch.zeros_like(number),
        is_target=torch.ones_like(number, dtype=torch.bool),
        draw=draw,
        metrics={} if metrics is None else metrics,
    )


def check_parts(objective: Objective, *, width: int) -> None:
    """Refuse parts that were built for another image, grid or encoder than this objective's.

    Every part is asked, wherever it sits, for what it owns: ``grid`` (a `Grid`), ``num_tokens``, ``num_positions``,
    ``memory_dim`` (the encoder's width, as it takes it), ``image_size`` (of tokenizers); what a part does not have is
    not looked at. The tokenizer is also asked for ``patch`` and ``channels``, and a linear head, which gets ``width``
    values, for its widths.
    """
    encoder, tokenizer, target, head = (getattr(objective, name) for name in ("encoder", "tokenizer", "target", "head"))
    for name, ours, theirs in (
        ("patch", tokenizer.patch, encoder.patch),
        ("channels", tokenizer.channels, encoder.channels),
        ("grid", str(tokenizer.grid), str(encoder.grid)),
    ):
        if ours != theirs:
            raise ValueError(f"tokenizer has {name} {ours}, but the encoder was built for {theirs}")
    tokens = encoder.grid.num_tokens
    owned = {"grid": encoder.grid, "num_tokens": tokens, "num_positions": tokens, "memory_dim": encoder.dim}
    found = [part for part in find_parts(objective) if not isinstance(part, Grid)]
    models = [
        part.module for part in found if isinstance(getattr(part, "grid", None), Grid) and hasattr(part, "module")
    ]
    inside = {id(part) for model in (encoder.module, *models) for part in model.modules()} | {id(encoder)}
    inside |= {id(part) for whole in found if hasattr(whole, "untokenize") for part in vars(whole).values()}
    for part in found:
        size = (
            {"image_size": tokenizer.image_size} if hasattr(tokenizer, "image_size") and hasattr(part, "cell") else {}
        )
        for name, theirs in {**owned, **size}.items() if id(part) not in inside else ():
            ours = getattr(part, name, None)
            if type(ours) is type(theirs) and ours != theirs:
                whose = "the tokenizer" if name == "image_size" else "the encoder"
                raise ValueError(f"{type(part).__name__} has {name} {ours}, but {whose} was built for {theirs}")
    if isinstance(head, nn.Linear) and (head.in_features, head.out_features) != (width, target.dim):
        raise ValueError(
            f"head leads from {head.in_features} to {head.out_features} values, but it gets {width} and the target "
            f"{type(target).__name__} has {target.dim}"
        )
