"""What benchmarks run: RandSAC and its pseudocode, and MAE, of any size."""

from dataclasses import dataclass

import torch
from torch import Tensor

import ssl_blocks as sb
from tests.pseudocode import PseudocodeRandSAC, segment_order


@dataclass(frozen=True)
class RandSACSize:
    """Of the images, the encoder and the decoder; by default CIFAR's ViT-T."""

    image: int = 32
    patch: int = 4
    side: int = 2
    dim: int = 192
    heads: int = 3
    depth: int = 12
    decoder_depth: int = 4

    @property
    def num_segments(self) -> int:
        """Squares in an image."""
        return (self.image // self.patch // self.side) ** 2


def randsac(size: RandSACSize, partitioner: sb.parts.SegmentPartitioner | None = None) -> sb.SegmentPrediction:
    """RandSAC of this library, by default over the squares of ``size``; targets are raw pixels."""
    tokenizer = sb.PatchTokenizer(image_size=size.image, patch_size=size.patch)
    encoder = sb.encoders.timm_vit(
        image_size=size.image, patch_size=size.patch, embed_dim=size.dim, depth=size.depth, num_heads=size.heads
    )
    return sb.randsac(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SquarePartitioner(sides=(size.side,)) if partitioner is None else partitioner,
        decoder=sb.SegmentDecoder(grid=encoder.grid, dim=size.dim, depth=size.decoder_depth, num_heads=size.heads),
        target=sb.PixelTarget(tokenizer),
    )


def pseudocode(size: RandSACSize, objective: sb.SegmentPrediction) -> PseudocodeRandSAC:
    """The twin of an objective of that size, with equal weights."""
    twin = PseudocodeRandSAC(
        image_size=size.image,
        patch_size=size.patch,
        side=size.side,
        dim=size.dim,
        num_heads=size.heads,
        encoder_depth=size.depth,
        decoder_depth=size.decoder_depth,
        positions="fixed",
        eps=1e-6,
    )
    twin.load_from(objective)
    return twin


@torch.no_grad()
def check_equal(size: RandSACSize, objective: sb.SegmentPrediction, twin: PseudocodeRandSAC, images: Tensor) -> None:
    """Refuse to compare two models that do not compute the same loss."""
    draw = objective.draw(images)
    order = segment_order(draw, side=size.side, grid_width=size.image // size.patch)
    torch.testing.assert_close(objective(images, draw).loss, twin(images, order)[0], rtol=1e-4, atol=0)


@dataclass(frozen=True)
class MAESize:
    """Of the images, the encoder and the decoder; by default CIFAR's ViT-T."""

    image: int = 32
    patch: int = 4
    dim: int = 192
    heads: int = 3
    depth: int = 12
    width: int = 192
    decoder_heads: int = 3
    decoder_depth: int = 4

    @property
    def num_patches(self) -> int:
        """Patches in an image."""
        return (self.image // self.patch) ** 2


def mae(size: MAESize, *, normalize: bool = False) -> sb.SegmentPrediction:
    """MAE of this library."""
    encoder = sb.encoders.timm_vit(
        image_size=size.image,
        patch_size=size.patch,
        embed_dim=size.dim,
        depth=size.depth,
        num_heads=size.heads,
        class_token=True,
    )
    tokenizer = sb.PatchTokenizer(image_size=size.image, patch_size=size.patch)
    decoder = sb.MaskTokenDecoder(
        grid=encoder.grid,
        dim=size.width,
        depth=size.decoder_depth,
        num_heads=size.decoder_heads,
        memory_dim=size.dim,
    )
    target = sb.PixelTarget(tokenizer, normalize=normalize)
    return sb.mae(encoder=encoder, tokenizer=tokenizer, target=target, decoder=decoder)
