"""AIM: patches in raster order, each predicted from all before it, with a prefix that sees itself whole.

Paper    El-Nouby et al.: "Scalable Pre-training of Large Autoregressive Image Models"
Idea     A language model's objective on patches: the output at a patch says what the next one looks like. A prefix of
         random length attends in both directions, so that the encoder can be used without a mask afterwards.
What     the pixels of the next patch, normalised, by the squared error, out of a deep head
Where    all patches behind a prefix of random length, in raster order
Who      the prefix sees itself whole; every later token sees what comes before it
New      a partitioner that makes the prefix one segment, and every token behind it another
Command  python examples/gallery/aim.py
"""

import torch
from torch import Tensor, nn

import ssl_blocks as sb
from examples.gallery.run import Method
from ssl_blocks.randomness import check_generator


class RasterPrefix:
    """The first tokens of an image, of random number, are segment 0; every other token is a segment of its own."""

    def __call__(self, images: Tensor, grid: sb.Grid, *, generator: torch.Generator | None = None) -> sb.Segments:
        """Draw the length of the prefix for every image; at least one token is left to predict."""
        n, device = grid.num_tokens, images.device
        check_generator(generator, device)
        length = torch.randint(1, n, (len(images), 1), generator=generator, device=device)
        ids = (torch.arange(n, device=device) - length + 1).clamp(min=0)
        return sb.Segments(levels=(ids,), counts=(n,))


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    target = sb.PixelTarget(tokenizer, normalize=True)
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=RasterPrefix(),
        serializer=sb.OrderedSerializer(),
        mask=sb.SegmentCausalMask(),  # inside a segment all see all: the prefix
        reader=sb.parts.NextReader(encoder.dim, num_tokens=encoder.grid.num_tokens),
        target=target,
        head=nn.Sequential(nn.Linear(encoder.dim, 4 * encoder.dim), nn.GELU(), nn.Linear(4 * encoder.dim, target.dim)),
    )


METHOD = Method(build)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
