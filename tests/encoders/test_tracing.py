"""A traced encoder gives the same features, for any number of images, also from a file."""

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.encoders import trace_features
from tests.encoders import stored
from tests.recipes import images

pytestmark = [
    pytest.mark.process,  # takes long
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),  # torch 2.11 reads from what is not
]


def test_a_saved_program_gives_the_same_features(tmp_path) -> None:
    torch.manual_seed(0)
    options = {"class_token": True, "reg_tokens": 2, "positions": "learned"}
    encoder = sb.encoders.timm_vit(image_size=16, patch_size=4, depth=1, embed_dim=16, num_heads=2, **options)
    encoder.train()
    torch.export.save(trace_features(encoder, images(2)), tmp_path / "encoder.pt2")
    assert encoder.module.training
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    encoder.eval()
    for batch in (1, 3, 7):
        torch.testing.assert_close(program(images(batch)), encoder.features(images(batch)), rtol=1e-5, atol=1e-6)


def test_one_image_tells_nothing_of_the_batch() -> None:
    encoder = sb.encoders.timm_vit(image_size=16, patch_size=4, depth=1, embed_dim=16, num_heads=2)
    with pytest.raises(ValueError, match="images must be at least 2 for a program of any batch size, got 1"):
        trace_features(encoder, images(1))


@pytest.mark.parametrize("name", ["DINOv3, rectangle", "Swin", "tokens of torch, class token"])
def test_encoders_of_each_kind_can_be_traced(name: str) -> None:
    encoder = stored.build(name)
    inputs = stored.inputs_for(encoder)
    program = trace_features(encoder, inputs).module()
    more = torch.cat([inputs, -inputs, inputs])
    with torch.no_grad():
        torch.testing.assert_close(program(more), encoder.features(more), rtol=1e-5, atol=1e-6)
