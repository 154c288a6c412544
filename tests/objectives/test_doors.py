"""What is no batch of images is refused at the door, in words."""

import inspect

import pytest
import torch

from ssl_blocks import Grid, PatchTokenizer, SegmentDecoder, SquarePartitioner
from ssl_blocks.encoders import timm_vit
from ssl_blocks.encoders.tokens import are_images
from ssl_blocks.objectives.builders import randsac


@pytest.mark.parametrize("sizes", [(2.5, 4), (True, 2), ("3", 2), ([2, 2],), (float("nan"), 2), (None,)])
def test_a_grid_has_whole_numbers(sizes) -> None:
    with pytest.raises(TypeError, match="must have whole numbers of tokens"):
        inspect.unwrap(Grid.__init__)(Grid.__new__(Grid), *sizes)  # as it is where nothing else looks at types


def test_a_grid_can_be_counted() -> None:
    with pytest.raises(ValueError, match=r"has 1,099,511,627,776 tokens, but at most 2,147,483,647"):
        Grid(2**20, 2**20)


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
