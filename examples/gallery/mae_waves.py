"""MAE on waves: stretches of a signal are tokens, and three quarters of them are hidden.

Paper    Huang et al.: "Masked Autoencoders that Listen"; Zhang et al.: "MAEFE: Masked Autoencoders Family of
         Electrocardiogram for Self-supervised Pretraining and Transfer Learning"
Idea     Nothing of MAE is about two axes: cut a signal into stretches, hide most of them, and predict samples.
What     the samples of a stretch
Where    random stretches, three quarters of a grid of one axis
Who      visible stretches see each other in the encoder; all see all in the decoder
New      a tokenizer of one axis for waves that come as images of one row, and no random crops
Command  python examples/gallery/mae_waves.py
"""

from collections.abc import Sequence

from torch import Tensor

import ssl_blocks as sb
from examples.gallery.run import Encoding, Method
from ssl_blocks.data.augment import RandomResizedCropFlip
from ssl_blocks.pretrain import EncoderConfig, RunConfig


class RowTokenizer(sb.PatchTokenizer):
    """Cut signals that come as images of one row."""

    def __call__(self, images: Tensor) -> Tensor:
        """Stretches ``[B, N, C, p]`` of images ``[B, C, 1, L]``."""
        return super().__call__(images.flatten(2))

    def untokenize(self, patches: Tensor) -> Tensor:
        """Images of one row."""
        return super().untokenize(patches)[:, :, None]


class WholeConfig(RunConfig):
    """Waves as they are."""

    def augmentation(
        self, shape: sb.data.ImageShape, mean: Sequence[float], std: Sequence[float]
    ) -> RandomResizedCropFlip:
        """The whole of every image."""
        ratio = shape.width / shape.height
        return RandomResizedCropFlip((shape.height, shape.width), scale=(1, 1), ratio=(ratio, ratio), flip=False)


def encode(shape: sb.data.ImageShape, sizes: EncoderConfig) -> Encoding:
    """Stretches of samples, and an encoder of one axis."""
    length, stretch = (shape.width,), sizes.patch_size or 8
    model = sb.encoders.GridTransformer(
        image_size=length,
        patch_size=stretch,
        channels=shape.channels,
        dim=sizes.width or 96,
        depth=sizes.depth or 4,
        num_heads=sizes.heads or 4,
    )
    tokenizer = RowTokenizer(image_size=length, patch_size=stretch, channels=shape.channels)
    return sb.encoders.wrap(model), tokenizer


def build(encoder: sb.encoders.TokenEncoder, tokenizer: sb.parts.Tokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    decoder = sb.MaskTokenDecoder(grid=encoder.grid, dim=48, depth=1, num_heads=4, memory_dim=encoder.dim)
    return sb.mae(encoder=encoder, tokenizer=tokenizer, decoder=decoder, target=sb.PixelTarget(tokenizer))


METHOD = Method(
    build,
    encode=encode,
    configuration=WholeConfig,
    tried_on=("--data.name=waves", "--encoder.patch_size=8"),
    tiny_shape=(1, 1, 64),
)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
