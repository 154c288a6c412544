"""MAE on images of several channels: one token per channel and place.

Paper    Bao et al.: "Channel Vision Transformers: An Image Is Worth C x 16 x 16 Words"; Kraus et al.: "Masked
         Autoencoders for Microscopy are Scalable Learners of Cellular Biology"
Idea     Stains of a microscope mean different things, so a token is a patch of one channel. What is hidden in one can
         be told from others at its place: how stains go together is what is learned.
What     the pixels of a patch of one channel, normalised
Where    random tokens of all channels, three quarters of a grid of channels, rows and columns
Who      visible tokens see each other in the encoder, whatever their channel; all see all in the decoder
New      an encoder of three axes, whose positions tell channels apart
Command  python examples/gallery/mae_channels.py
"""

import ssl_blocks as sb
from examples.gallery.run import Encoding, Method
from ssl_blocks.pretrain import EncoderConfig


def encode(shape: sb.data.ImageShape, sizes: EncoderConfig) -> Encoding:
    """Patches of single channels; an encoder sees channels as a volume's first axis."""
    size = (shape.height, shape.width)
    tokenizer = sb.ChannelTokenizer(image_size=size, patch_size=sizes.patch_size or 8, channels=shape.channels)
    model = sb.encoders.GridTransformer(
        image_size=tuple(shape),
        patch_size=tokenizer.patch,
        channels=1,
        dim=sizes.width or 96,
        depth=sizes.depth or 4,
        num_heads=sizes.heads or 4,
        positions="learned",
    )
    return sb.encoders.wrap(model), tokenizer


def build(encoder: sb.encoders.TokenEncoder, tokenizer: sb.parts.Tokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    decoder = sb.MaskTokenDecoder(grid=encoder.grid, dim=48, depth=1, num_heads=4, memory_dim=encoder.dim)
    return sb.mae(encoder=encoder, tokenizer=tokenizer, decoder=decoder)


METHOD = Method(build, encode=encode, tried_on=("--data.name=cells", "--encoder.patch_size=8"), tiny_shape=(3, 8, 8))

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
