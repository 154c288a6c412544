"""Maps of several strides out of a vision transformer, which has only one: for segmentation and detection."""

from collections import OrderedDict

import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ssl_blocks.bounds import Width
from ssl_blocks.doors import checked
from ssl_blocks.encoders import TokenEncoder
from ssl_blocks.evaluation.pooling import encode_all

SCALES = (0.25, 0.5, 1.0, 2.0)  # of each map, in patches


@checked
class FeaturePyramid(nn.Module):
    """Bring the hidden states of a token encoder to four maps, fine to coarse.

    RandSAC, appendix B. The blocks form four groups of equal size. The hidden state after each group, without its
    prefix tokens and not normalised, becomes a map: that of the first group is enlarged four times by transposed
    convolutions, the second twice, the third stays, and the fourth is halved by a max-pool. A 1x1 convolution and a
    norm over channels bring all to one width. A patch of 16 pixels makes strides 4, 8, 16, 32; one of 4 pixels makes
    1, 2, 4, 8. torchvision's detection models take a pyramid as backbone.

    Args:
        encoder: whose depth is a multiple of four. It is held, not copied.
        out_channels: width of every map.
        freeze: whether the encoder stays as it is: no gradient reaches it, and it stays in evaluation mode.

    Raises:
        ValueError: if the encoder's depth is no multiple of four, or ``out_channels`` is below 1.

    Examples:
        >>> from ssl_blocks.encoders import timm_vit
        >>> encoder = timm_vit(image_size=64, patch_size=16, depth=4, embed_dim=32, num_heads=2)
        >>> pyramid = FeaturePyramid(encoder, out_channels=8)
        >>> [tuple(level.shape) for level in pyramid(torch.zeros(1, 3, 64, 64)).values()]
        [(1, 8, 16, 16), (1, 8, 8, 8), (1, 8, 4, 4), (1, 8, 2, 2)]
    """

    def __init__(self, encoder: TokenEncoder, *, out_channels: Width = 256, freeze: bool = False) -> None:
        super().__init__()
        if encoder.depth % len(SCALES):
            raise ValueError(
                f"encoder of depth {encoder.depth} must have a multiple of four blocks, for they form four equal groups"
            )
        self.encoder, self.out_channels, self.freeze = encoder, out_channels, freeze
        if not isinstance(encoder, nn.Module):  # then its model would not be found
            self.encoder_module = encoder.module
        width = out_channels
        resized: tuple[nn.Module, ...] = (
            nn.Sequential(_enlarge(encoder.dim, width), LayerNorm2d(width), nn.GELU(), _enlarge(width, width)),
            _enlarge(encoder.dim, width),
            nn.Identity(),
            nn.MaxPool2d(2, ceil_mode=True),  # a grid of odd size keeps its last row and column
        )
        self.levels = nn.ModuleList(
            nn.Sequential(part, nn.Conv2d(given, width, 1), LayerNorm2d(width))
            for part, given in zip(resized, (width, width, encoder.dim, encoder.dim), strict=True)
        )
        self.train(self.training)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        grid, patch = self.encoder.grid, self.encoder.patch
        return grid.height * patch[0], grid.width * patch[1]

    @property
    def strides(self) -> tuple[tuple[float, float], ...]:
        """Pixels between neighbours of each map, (vertically, horizontally), fine to coarse."""
        height, width = self.encoder.patch
        return tuple((height * scale, width * scale) for scale in SCALES)

    def train(self, mode: bool = True) -> "FeaturePyramid":
        """Set the mode of all but a frozen encoder, which evaluates always."""
        super().train(mode)
        if self.freeze:
            self.encoder.module.eval()
            if isinstance(self.encoder, nn.Module):
                self.encoder.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare: the encoder's, where it names any."""
        named = getattr(self.encoder, "no_weight_decay", None)
        return set() if named is None else {f"encoder.{name}" for name in named()}

    def hidden_maps(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d p q"], ...]:
        """Hidden states after each of the four groups, as maps of the encoder's grid, ``[B, D, height, width]``."""
        encoder, grid = self.encoder, self.encoder.grid
        if tuple(images.shape[1:]) != (encoder.channels, *self.image_size):
            raise ValueError(
                f"images of shape {tuple(images.shape)} must be the encoder's, "
                f"[B, {encoder.channels}, {self.image_size[0]}, {self.image_size[1]}]"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            hidden = encode_all(encoder, images).hidden
        group = encoder.depth // len(SCALES)
        tokens = [state[:, encoder.num_prefix :] for state in hidden[group - 1 :: group]]
        return tuple(t.transpose(1, 2).reshape(len(t), encoder.dim, grid.height, grid.width) for t in tokens)

    def forward(self, images: Float[Tensor, "b c h w"]) -> "OrderedDict[str, Tensor]":
        """Make the maps of a batch of normalised images of the encoder's size, ``[B, C, H, W]``.

        Returns:
            Maps ``[B, out_channels, height, width]`` under the names ``"0"`` to ``"3"``, fine to coarse.
        """
        states = self.hidden_maps(images)
        return OrderedDict(
            (str(i), level(state)) for i, (level, state) in enumerate(zip(self.levels, states, strict=True))
        )

    def check_finite(self, images: Float[Tensor, "b c h w"]) -> None:
        """Refuse an encoder whose features are not finite, before a loss is NaN.

        Raises:
            ValueError: naming the first group of blocks after which the hidden state is not finite.
        """
        group = self.encoder.depth // len(SCALES)
        with torch.no_grad():
            for i, state in enumerate(self.hidden_maps(images)):
                if not bool(state.isfinite().all()):
                    raise ValueError(
                        f"the encoder's hidden state after block {(i + 1) * group} of {self.encoder.depth} must be "
                        "finite, but holds NaN or infinity"
                    )


def _enlarge(dim: int, width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(dim, width, kernel_size=2, stride=2)
