"""What is read out of an encoder of tokens: which layers, and class token, mean of the patches, or all places."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders import FeatureEncoder, RegionEncoder, TokenEncoder
from ssl_blocks.values import Encoded

Pooling = Literal["mean", "class_token", "both"]


@checked
class PooledLayers:
    """Features of the last layers of an encoder of tokens side by side, each normalised by the model's final norm.

    DINOv2 (Oquab et al. 2023, appendix B.3) probes the class tokens of the last 1 or 4 layers, with and without the
    mean of the last layer's patch tokens; here every layer gives the same.

    Args:
        encoder: of tokens.
        layers: how many, counted from the last.
        pooling: of each layer: ``"mean"`` of its patch tokens, ``"class_token"``: the first token in front of them, or
            ``"both"``, the class token first.

    Raises:
        ValueError: if the encoder has no tokens, or fewer layers, or no class token where one is asked for.

    Examples:
        >>> from ssl_blocks.encoders import timm_vit
        >>> encoder = timm_vit(image_size=8, patch_size=4, depth=3, embed_dim=16, num_heads=2)
        >>> PooledLayers(encoder, layers=2).features(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 32])
    """

    def __init__(self, encoder: FeatureEncoder, *, layers: int = 1, pooling: Pooling = "mean") -> None:
        name = type(encoder).__name__
        if not isinstance(encoder, TokenEncoder):
            raise ValueError(f"layers={layers} with pooling={pooling!r} needs an encoder of tokens, and {name} is none")
        if not 1 <= layers <= encoder.depth:
            raise ValueError(f"layers={layers} must be at least 1 and at most {encoder.depth}, the encoder's blocks")
        if pooling != "mean" and not encoder.num_prefix:
            raise ValueError(f"pooling={pooling!r} needs a class token, and the encoder has none: take 'mean'")
        self._encoder: TokenEncoder = encoder
        self.layers, self.how = layers, pooling
        self.dim = encoder.dim * layers * (2 if pooling == "both" else 1)
        self.channels, self.grid, self.num_prefix = encoder.channels, encoder.grid, encoder.num_prefix
        what = {"mean": "mean of patch tokens", "class_token": "class token", "both": "class token and mean of patches"}
        self.pooling = f"{what[pooling]}, normalised" + (f", of the last {layers} layers" if layers > 1 else "")

    @property
    def module(self) -> nn.Module:
        """The encoder's model."""
        return self._encoder.module

    def features(
        self, images: Float[Tensor, "..."], mask: Bool[Tensor, "_ 1 s s"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Vectors of the layers side by side, the earliest first, ``[B, D]``."""
        encoder = self._encoder
        encoded = encode_all(encoder, images, mask)
        early = encoded.hidden[-self.layers : -1] if self.layers > 1 else ()
        parts: list[Tensor] = []
        for tokens in (*(encoder.norm(hidden) for hidden in early), encoded.final):
            parts += [tokens[:, 0]] if self.how != "mean" else []
            parts += [tokens[:, encoder.num_prefix :].mean(1)] if self.how != "class_token" else []
        return torch.cat(parts, 1)


@checked
class AllPlaces:
    """All places of an image in a row, as one long vector: normalised patch tokens, or regions.

    So they go through an `Extractor` as features do; ``grouped`` takes them apart again.

    Raises:
        ValueError: if the encoder has neither tokens nor regions.
    """

    def __init__(self, encoder: FeatureEncoder) -> None:
        if not isinstance(encoder, TokenEncoder | RegionEncoder):
            raise ValueError(f"{type(encoder).__name__} has no tokens and no regions")
        self._encoder: TokenEncoder | RegionEncoder = encoder
        self.width, self.dim, self.channels = encoder.dim, encoder.dim, encoder.channels
        if isinstance(encoder, TokenEncoder):
            self.grid, self.num_prefix = encoder.grid, encoder.num_prefix
            self.dim = encoder.dim * encoder.grid.num_tokens

    @property
    def module(self) -> nn.Module:
        """The encoder's model."""
        return self._encoder.module

    def features(
        self, images: Float[Tensor, "..."], mask: Bool[Tensor, "_ 1 s s"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Places in raster order, ``[B, N*D]``."""
        if isinstance(self._encoder, TokenEncoder):
            return encode_all(self._encoder, images, mask).final[:, self._encoder.num_prefix :].flatten(1)
        return self._encoder.regions(images).map.flatten(1)

    def grouped(self, features: Float[Tensor, "b nd"]) -> Float[Tensor, "b n d"]:
        """Places apart, ``[B, N, D]``."""
        return features.view(len(features), -1, self.width)


def encode_all(encoder: TokenEncoder, images: Tensor, mask: Tensor | None = None) -> Encoded:
    """Encode all patches of images ``[B, C, H, W]``, or of what a tokenizer cut, at their places."""
    tokens = encoder.embed(images)
    index = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
    return encoder.encode(tokens, index, mask)
