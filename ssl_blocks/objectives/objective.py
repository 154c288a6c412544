"""What a training loop asks of an objective, and the plain answers to it."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.encoders.protocol import FeatureEncoder, TokenEncoder
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.values import ObjectiveOutput, Progress, Views


@runtime_checkable
class Objective(Protocol):
    """A pretraining objective: random choices, a loss, and hooks for the loop around it.

    Images are ``[B, C, H, W]``; an objective that compares several crops of an image takes `Views`, too.
    """

    def draw(self, images: Any, /, *, generator: torch.Generator | None = None) -> Any:
        """Make every random choice for a batch of images."""
        ...

    def __call__(self, images: Any, /, draw: Any = None) -> ObjectiveOutput:
        """Compute loss and predictions; deterministic where ``draw`` is given."""
        ...

    def before_step(self, progress: Progress) -> None:
        """Set what follows a schedule; called before every optimizer step."""
        ...

    def after_step(self) -> None:
        """Update what follows the weights, such as a teacher; called after every optimizer step."""
        ...

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare, besides those of fewer than two dimensions."""
        ...

    def export_encoder(self) -> FeatureEncoder:
        """The encoder that pretraining leaves behind."""
        ...


class ObjectiveModule(nn.Module, ABC):
    """The life cycle of an objective that follows no schedule and keeps no teacher. Inherit to write your own.

    A subclass sets ``self.encoder`` and, where it cuts images into patches, ``self.tokenizer``; and it defines ``draw``
    and ``forward``.

    Attributes:
        encoder: what is trained.
        tokenizer: how images are cut; ``None`` for objectives that hand whole images to their encoder.
        takes_views: whether the objective takes `Views`; others get the first global view.
    """

    encoder: FeatureEncoder
    tokenizer: Tokenizer | None = None
    takes_views: bool = False

    @abstractmethod
    def draw(self, images: Any, *, generator: torch.Generator | None = None) -> Any:
        """Make every random choice for a batch of images ``[B, C, H, W]``, or of `Views`."""

    @abstractmethod
    def forward(self, images: Any, draw: Any = None) -> ObjectiveOutput:
        """Compute loss and predictions; deterministic where ``draw`` is given."""

    def before_step(self, progress: Progress) -> None:
        """Follow no schedule."""

    def after_step(self) -> None:
        """Update nothing."""

    def no_weight_decay(self) -> set[str]:
        """Collect what the parts name: positions, class and register tokens."""
        names: set[str] = set()
        for path, part in self.named_modules():
            own = getattr(part, "no_weight_decay", None)
            if part is not self and callable(own):
                names |= {f"{path}.{name}" for name in own()}
        return names & {name for name, _ in self.named_parameters()}

    def measure(self, images: Any) -> dict[str, Float[Tensor, ""]]:
        """How well the objective itself is met on held-out images, by name; nothing by default.

        A run averages it over its test images, and reports it. Choices that training makes at random are left out.
        """
        return {}

    def export_encoder(self) -> FeatureEncoder:
        """The encoder as it stands."""
        return self.encoder


def seen_by(objective: ObjectiveModule, images: Tensor | Views) -> Any:
    """What an objective gets of images: `Views` where it takes them, else the first global view."""
    return images.images[0] if isinstance(images, Views) and not objective.takes_views else images


def check_tokenizer(tokenizer: Tokenizer, encoder: TokenEncoder) -> None:
    """Refuse a tokenizer that does not cut what the encoder was built for.

    Raises:
        ValueError: naming patch, channels or grid, whichever differs first.
    """
    for name, ours, theirs in (
        ("patch", tokenizer.patch, encoder.patch),
        ("channels", tokenizer.channels, encoder.channels),
        ("grid", str(tokenizer.grid), str(encoder.grid)),
    ):
        if ours != theirs:
            raise ValueError(f"tokenizer has {name} {ours}, but the encoder was built for {theirs}")
