"""MAE on volumes: cubes of voxels are tokens, and three quarters of them are hidden.

Paper    Feichtenhofer et al.: "Masked Autoencoders As Spatiotemporal Learners"; Chen et al.: "Masked Image Modeling
         Advances 3D Medical Image Analysis"
Idea     Nothing of MAE is about two axes: cut a volume or a video into cubes, hide most of them, and predict voxels.
What     the voxels of a cube, normalised by its own mean and deviation
Where    random cubes, three quarters of a grid of three axes
Who      visible cubes see each other in the encoder; all see all in the decoder
New      an encoder and a tokenizer of three axes; slices come as channels, as in files of many channels
Command  python examples/gallery/mae_volumes.py
"""

import ssl_blocks as sb
from examples.gallery.run import Encoding, Method
from ssl_blocks.pretrain import EncoderConfig


def encode(shape: sb.data.ImageShape, sizes: EncoderConfig) -> Encoding:
    """Cubes of slices, rows and columns."""
    side, size = sizes.patch_size or 4, (shape.height, shape.width)
    tokenizer = sb.ChannelTokenizer(image_size=size, patch_size=side, channels=shape.channels, depth=side)
    model = sb.encoders.GridTransformer(
        image_size=tuple(shape),
        patch_size=side,
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


METHOD = Method(build, encode=encode, tried_on=("--data.name=volumes",), tiny_shape=(8, 8, 8))

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
