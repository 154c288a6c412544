"""What is no batch of images is refused at the door, in words."""

import inspect

import pytest
import torch

from ssl_blocks import Grid, PatchTokenizer, SegmentDecoder, SquarePartitioner
from ssl_blocks.encoders import timm_vit
from ssl_blocks.encoders.tokens import are_images
from ssl_blocks.objectives.builders import randsac


def objective():
    encoder = timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2)
    tokenizer = PatchTokenizer(image_size=8, patch_size=4)
    decoder = SegmentDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2)
    return randsac(encoder=encoder, tokenizer=tokenizer, partitioner=SquarePartitioner(sides=(1,)), decoder=decoder)


def test_an_empty_batch_is_none() -> None:
    with pytest.raises(ValueError, match=r"images of shape \(0, 3, 8, 8\) must be at least one"):
        objective()(torch.rand(0, 3, 8, 8))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_images_are_floating_point_numbers(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"images of {dtype} must be normalised floating-point numbers"):
        inspect.unwrap(are_images)(torch.zeros(2, 3, 8, 8, dtype=dtype), Grid(2, 2), (4, 4), 3)
