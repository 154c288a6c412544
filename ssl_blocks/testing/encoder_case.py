"""What the checks of an encoder work on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_blocks.parts.tokenize import PatchTokenizer

NUM_STEPS = 4  # segments of the causal masks


class EncoderError(AssertionError):
    """An encoder does not keep what a ``TokenEncoder`` promises."""


@dataclass(frozen=True)
class Case:
    """An encoder under test, and what is drawn for it."""

    encoder: Any
    native: Callable[[Tensor], Tensor] | None
    images: Tensor
    generator: torch.Generator | None
    tolerance: float
    has_positions: bool
    compiles: bool

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All of them, by name."""
        return dict(self.model().named_parameters())

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        num: int = self.encoder.grid.num_tokens
        return num

    def tokens(self) -> Float[Tensor, "b n d"]:
        """Embedded images, as leaves."""
        tokens: Tensor = self.encoder.embed(self.images)
        return tokens.detach()

    def tokenizer(self) -> PatchTokenizer:
        """Cuts the images into the encoder's patches."""
        height, width = self.images.shape[-2:]
        patch, channels = self.encoder.patch, self.encoder.channels
        return PatchTokenizer(image_size=(height, width), patch_size=patch, channels=channels)

    def raster(self) -> Int[Tensor, "b n"]:
        """Positions in raster order."""
        return torch.arange(self.num_tokens, device=self.images.device).expand(len(self.images), -1)

    def shuffled(self) -> Int[Tensor, "b n"]:
        """Another order for every image."""
        return self.noise(len(self.images), self.num_tokens).argsort(1)

    def noise(self, *shape: int) -> Tensor:
        """Plain noise, of the images' type."""
        device = self.images.device if self.generator is None else self.generator.device
        drawn = torch.randn(shape, generator=self.generator, device=device)
        return drawn.to(self.images.device, self.images.dtype)

    def steps(self) -> Int[Tensor, "b s"]:
        """A random step of each token, other ones in every image; -1 for the prefix."""
        of_rank = torch.arange(self.num_tokens, device=self.images.device) * NUM_STEPS // self.num_tokens
        step = of_rank[self.shuffled()]
        return torch.nn.functional.pad(step, (self.encoder.num_prefix, 0), value=-1)

    def model(self) -> nn.Module:
        """Whatever modes and parameters belong to."""
        model: nn.Module = self.encoder if isinstance(self.encoder, nn.Module) else self.encoder.module
        return model

    def close(self, found: Tensor, expected: Tensor) -> bool:
        """Whether two results are equal but for rounding."""
        if found.shape != expected.shape or not expected.numel():
            return found.shape == expected.shape
        scale = expected.detach().abs().max().clamp(min=1.0)
        return bool((found - expected).abs().max() <= self.tolerance * scale)
