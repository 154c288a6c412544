"""A transformer over a grid: what is special about it."""

import re

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.encoders import GridTransformer, GridViT, wrap
from ssl_blocks.encoders.grid import PatchStem
from ssl_blocks.testing import assert_no_leak

SIZE = {"dim": 12, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(("convolution", "patch"), [(nn.Conv1d, (4,)), (nn.Conv2d, (4, 2)), (nn.Conv3d, (2, 4, 3))])
def test_the_stem_is_a_convolution_whose_kernel_is_its_stride(convolution, patch):
    torch.manual_seed(0)
    plain, stem = convolution(3, 8, patch, patch), PatchStem(3, 8, patch)
    stem.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, *(3 * side for side in patch))
    torch.testing.assert_close(stem(images), plain(images).flatten(2))


def test_four_axes_have_no_convolution_and_need_none():
    encoder = wrap(GridTransformer(image_size=(4, 4, 4, 4), patch_size=2, dim=16, depth=1, num_heads=2))
    assert encoder.features(torch.zeros(2, 3, 4, 4, 4, 4)).shape == (2, 16)


def test_one_token_per_channel_and_place_learns_without_a_leak():
    torch.manual_seed(0)
    tokenizer = sb.ChannelTokenizer(image_size=8, patch_size=4, channels=3)
    encoder = wrap(GridTransformer(image_size=(3, 8, 8), patch_size=(1, 4, 4), channels=1, **SIZE))
    objective = sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.TubePartitioner(base=sb.SubsetPartitioner(hidden=0.5)),
        serializer=sb.OrderedSerializer(),
        mask=sb.FullMask(),
        reader=sb.DecoderReader(
            sb.LastLayerRouter(decoder_depth=1), sb.MaskTokenDecoder(grid=encoder.grid, dim=12, depth=1, num_heads=2)
        ),
        target=sb.PixelTarget(tokenizer, normalize=True),
    )
    assert_no_leak(objective, torch.randn(2, 3, 8, 8), draws=2)
    images, loss = torch.randn(4, 3, 8, 8), []
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    draw = objective.draw(images)
    for _ in range(30):
        out = objective(images, draw)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        loss.append(out.loss.item())
    assert loss[-1] < 0.7 * loss[0]


def test_the_query_stream_may_share_its_blocks():
    encoder = GridViT(GridTransformer(image_size=(8,), patch_size=2, channels=1, **SIZE))
    decoder = sb.QueryStreamDecoder.sharing(encoder, depth=2)
    assert not list(decoder.parameters())
    with pytest.raises(ValueError, match="depth=3 must be at least 1 and at most the encoder's 2 blocks"):
        encoder.query_blocks(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size=3 must divide image_size=(4, 8, 8)"),
        ({"patch_size": (4, 4)}, "patch_size=(4, 4) must be one number, or one for each axis"),
        ({"dim": 16}, "dim=16 must be a positive multiple of 6 for sine-cosine positions"),
        ({"num_heads": 5}, "num_heads=5 must divide dim=12"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"num_prefix": -1}, "num_prefix=-1 must be at least 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GridTransformer(**{"image_size": (4, 8, 8), "patch_size": 4, **SIZE, **options})


def test_an_encoder_of_another_grid_is_refused():
    encoder = wrap(GridTransformer(image_size=(4, 8, 8), patch_size=4, channels=3, **SIZE))
    message = "tokenizer has patch (4, 4), but the encoder was built for (4, 4, 4)"
    with pytest.raises(ValueError, match=re.escape(message)):
        sb.simmim(encoder=encoder, tokenizer=sb.PatchTokenizer(image_size=8, patch_size=4))
    message = "tokenizer has grid 2x2x2, but the encoder was built for 1x2x2"
    with pytest.raises(ValueError, match=re.escape(message)):
        sb.simmim(encoder=encoder, tokenizer=sb.PatchTokenizer(image_size=(8, 8, 8), patch_size=4))
    with pytest.raises(
        ValueError, match=re.escape("images of shape (2, 3, 8, 8, 8) do not fit the encoder: expected [B, 3")
    ):
        encoder.features(torch.zeros(2, 3, 8, 8, 8))
