"""MAE with a perceptual target: what a frozen network makes of hidden patches.

Paper    He et al.: "Masked Autoencoders Are Scalable Vision Learners"; Dong et al.: "PeCo: Perceptual Codebook for BERT
         Pre-training of Vision Transformers", for perceptual likeness
Idea     Two patches are alike where a network that knows images finds them so. The target is the map of features of a
         frozen convolutional network, here with random weights; give it trained ones where you have them.
What     features of a frozen network at the patch, normalised, by one minus the cosine
Where    a random three quarters of the patches
Who      given tokens see each other; in the decoder all see all; the frozen network sees the whole image
New      a target: the map of any network, brought to the grid
Command  python examples/gallery/mae_perceptual.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssl_blocks as sb
from examples.gallery.run import Method


class MapTarget(nn.Module):
    """What a frozen network says at every place: its map ``[B, D, h, w]``, resized to the grid and normalised."""

    def __init__(self, network: nn.Module, dim: int, grid: sb.Grid) -> None:
        super().__init__()
        self.network, self.dim, self.grid = network.requires_grad_(False).eval(), dim, grid

    def train(self, mode: bool = True) -> "MapTarget":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return ``[B, N, D]``."""
        size = (self.grid.height, self.grid.width)
        features = F.interpolate(self.network(images), size=size, mode="bilinear", antialias=True)
        return F.layer_norm(features.flatten(2).mT, (self.dim,))


def network(channels: int, widths: tuple[int, ...] = (32, 64, 128)) -> nn.Module:
    """Convolutions with norms over groups; each but the first halves the map."""
    layers: list[nn.Module] = []
    for stage, width in enumerate(widths):
        layers += [nn.Conv2d(channels, width, 3, stride=1 if stage == 0 else 2, padding=1), nn.GroupNorm(8, width)]
        layers, channels = [*layers, nn.GELU()], width
    return nn.Sequential(*layers)


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    return sb.mae(
        encoder=encoder,
        tokenizer=tokenizer,
        decoder=sb.MaskTokenDecoder(grid=encoder.grid, dim=encoder.dim, depth=2, num_heads=4),
        target=MapTarget(network(tokenizer.channels), 128, encoder.grid),
        loss=sb.predicted_cosine,
    )


METHOD = Method(build, class_token=True)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
