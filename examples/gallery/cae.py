"""CAE-like: a regressor says what the encoder would make of hidden patches, and a decoder names their codes.

Paper    Chen et al.: "Context Autoencoder for Self-Supervised Representation Learning" (CAE)
Idea     Keep the encoder out of the pretext task: it sees visible patches alone. A regressor without self-attention
         predicts the latents of hidden patches, which a decoder of its own turns into codes.
What     the cluster of a patch, by cross-entropy; and the encoder's own output at the patch, by the squared error
Where    rectangular blocks, half of the image
Who      given tokens see each other; a query of the regressor sees what is given; in the decoder queries see each other
New      a head that keeps what it was given, a target of two parts, and a loss for each. CAE encodes hidden patches
         alone and by the weights of this step, here whole images by those of the step before; its codes are a VAE's
Command  python examples/gallery/cae.py
"""

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import ssl_blocks as sb
from examples.gallery.run import Method

NUM_CODES, WEIGHT = 128, 2.0


class BothTarget(nn.Module):
    """Two targets, one behind the other."""

    def __init__(self, first: sb.parts.Target, second: sb.parts.Target) -> None:
        super().__init__()
        self.first, self.second, self.dim = first, second, first.dim + second.dim

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[B, N, first + second]``."""
        return torch.cat([self.first(images), self.second(images)], dim=-1)


class CodesAndLatents(nn.Module):
    """The decoder: codes of regressed latents, and these themselves behind them."""

    def __init__(self, dim: int, num_codes: int) -> None:
        super().__init__()
        self.codes = nn.Sequential(Block(dim, 4, qkv_bias=True), nn.LayerNorm(dim), nn.Linear(dim, num_codes))

    def forward(self, latents: Tensor) -> Tensor:
        """Take ``[B, t, D]``, return ``[B, t, codes + D]``."""
        return torch.cat([self.codes(latents), latents], dim=-1)


def both(predictions: Tensor, targets: Tensor, is_target: Tensor, *, num_codes: int) -> Tensor:
    """Cross-entropy of the codes, and the squared error of the latents."""
    codes = sb.predicted_cross_entropy(predictions[..., :num_codes], targets[..., :num_codes], is_target)
    return codes + WEIGHT * sb.predicted_mse(predictions[..., num_codes:], targets[..., num_codes:], is_target)


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer, images: Tensor) -> sb.SegmentPrediction:
    """Put the objective together, with a codebook of some training images."""
    pixels, dim = sb.PixelTarget(tokenizer), encoder.dim
    codes = sb.parts.ClusterTarget(pixels, sb.parts.kmeans(pixels(images).flatten(0, 1), NUM_CODES))
    regressor = sb.SegmentDecoder(
        grid=encoder.grid, dim=dim, depth=2, num_heads=4, self_attention=False, mask_token=True
    )
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.BlockSubsetPartitioner(hidden=0.5),
        serializer=sb.OrderedSerializer(),
        mask=sb.FullMask(),
        reader=sb.DecoderReader(sb.LastLayerRouter(decoder_depth=2), regressor),
        target=BothTarget(codes, sb.EncoderTarget(sb.MovingAverage(encoder, momentum=0.0))),
        loss=partial(both, num_codes=NUM_CODES),
        head=CodesAndLatents(dim, NUM_CODES),
    )


METHOD = Method(build, class_token=True, looks=True)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
