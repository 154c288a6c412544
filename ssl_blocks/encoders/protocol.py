"""What objectives and evaluation ask of an encoder."""

from typing import Annotated, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_blocks.grid import Grid
from ssl_blocks.values import Encoded, Regions


@runtime_checkable
class FeatureEncoder(Protocol):
    """Whatever turns images into features: all that evaluation and export need.

    Attributes:
        module: the user's own model, unpatched; saving its ``state_dict`` is the export.
        dim: width of the features, ``D``.
        channels: colour channels of the images, or of the patches where a tokenizer cuts them.
    """

    dim: int
    channels: int

    @property
    def module(self) -> nn.Module:
        """The user's own model, unpatched."""
        ...

    def features(self, images: Float[Tensor, "..."]) -> Float[Tensor, "b d"]:
        """One vector per image, ``[B, D]``."""
        ...


@runtime_checkable
class RegionEncoder(FeatureEncoder, Protocol):
    """Any model that ends in a map of features: Swin, PVT, ConvNeXt, or a vision transformer's tokens.

    Images may have another size than the model was built for, where the model allows it.
    """

    def regions(self, images: Float[Tensor, "b c h w"]) -> Regions:
        """Features of every region and of the whole image."""
        ...


AnyRegionEncoder = Annotated[RegionEncoder, "a token encoder fits as TokenRegions(encoder)"]


@runtime_checkable
class TokenEncoder(FeatureEncoder, Protocol):
    """A vision transformer seen as pixels → tokens → features, with positions and masks from outside.

    Attributes:
        norm: the model's final norm.
        dim: width of a token, ``D``, and of the features.
        depth: number of blocks.
        grid: tokens of an image.
        patch: size of a patch in pixels along each axis, height and width.
        num_prefix: class and register tokens in front of the sequence, ``P``.
    """

    depth: int
    grid: Grid
    patch: tuple[int, ...]
    num_prefix: int

    @property
    def norm(self) -> nn.Module:
        """The model's final norm."""
        ...

    def embed(self, x: Float[Tensor, "..."]) -> Float[Tensor, "b n d"]:
        """Turn images ``[B, C, H, W]`` or patches ``[B, n, C, p, q]`` into tokens without positions.

        Token i sees the pixels of patch i alone.
        """
        ...

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        index: Int[Tensor, "b n"] | None,
        mask: Bool[Tensor, "_ 1 s s"] | None = None,
    ) -> Encoded:
        """Run the blocks over tokens in any order and number.

        Args:
            tokens: ``[B, n, D]`` out of ``embed``.
            index: raster position of every token, ``[B, n]``; ``None`` means no positions at all.
            mask: ``[1|B, 1, P+n, P+n]``, ``True`` = may attend; ``None`` lets all see all.
        """
        ...

    def features(
        self, images: Float[Tensor, "..."], mask: Bool[Tensor, "_ 1 s s"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Mean over the patch tokens of the normalised output, ``[B, D]``.

        Args:
            images: ``[B, C, H, W]``, or all their patches ``[B, N, C, p, q]`` in raster order.
            mask: ``[1|B, 1, P+N, P+N]``, prefix first, then raster order, ``True`` = may attend: what a causal encoder
                is read under; ``None`` lets all see all.
        """
        ...
