"""What a training loop asks of an objective, and the plain answers to it."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.tokenizers import Tokenizer
from ssl_blocks.values import ObjectiveOutput, Progress


@runtime_checkable
class Objective(Protocol):
    """A pretraining objective: random choices, a loss, and hooks for the loop around it."""

    def draw(self, images: Float[Tensor, "b c h w"], *, generator: torch.Generator | None = None) -> Any:
        """Make every random choice for a batch of images ``[B, C, H, W]``."""
        ...

    def __call__(self, images: Float[Tensor, "b c h w"], draw: Any = None) -> ObjectiveOutput:
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

    def export_encoder(self) -> TokenEncoder:
        """The encoder that pretraining leaves behind."""
        ...


class ObjectiveModule(nn.Module, ABC):
    """The life cycle of an objective that follows no schedule and keeps no teacher. Inherit to write your own.

    A subclass sets ``self.encoder`` and ``self.tokenizer``, and defines ``draw`` and ``forward``.
    """

    encoder: TokenEncoder
    tokenizer: Tokenizer

    @abstractmethod
    def draw(self, images: Float[Tensor, "b c h w"], *, generator: torch.Generator | None = None) -> Any:
        """Make every random choice for a batch of images ``[B, C, H, W]``."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "b c h w"], draw: Any = None) -> ObjectiveOutput:
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

    def export_encoder(self) -> TokenEncoder:
        """The encoder as it stands."""
        return self.encoder


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
