"""The patch puzzle's transformer equals its description in loops, and fills the role of a token encoder."""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import ssl_blocks as sb
from ssl_blocks import encoders
from tests.reference import cut_patches, post_norm_block


def build(*, seed: int = 0, **options) -> encoders.PostNormTransformer:
    torch.manual_seed(seed)
    size = {"grid": (2, 3), "patch": (2, 1), "channels": 4, "depth": 2, "num_heads": 2} | options
    return encoders.PostNormTransformer(**size)


def tokens(encoder: encoders.PostNormTransformer, batch: int = 2, number: int = 5) -> torch.Tensor:
    return torch.randn(batch, number, encoder.dim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("mlp_ratio", [1, 3])
def test_hidden_states_equal_those_by_loop(num_heads: int, mlp_ratio: int) -> None:
    encoder = build(num_heads=num_heads, mlp_ratio=mlp_ratio).double().eval()
    for parameter in encoder.parameters():  # norms start at one and zero, which would hide mistakes
        torch.nn.init.normal_(parameter, std=0.5)
    x = tokens(encoder).double()
    states = encoder.encode(x, None)
    expected = list(x)
    for number, (block, found) in enumerate(zip(encoder.blocks, states.hidden, strict=True)):
        weights = {name: value.detach() for name, value in block.named_parameters()}
        expected = [post_norm_block(image, weights, num_heads) for image in expected]
        torch.testing.assert_close(found.detach(), torch.stack(expected), msg=f"block {number}")
    assert torch.equal(states.final, states.hidden[-1])


def test_queries_keys_and_values_have_no_bias() -> None:
    names = {name for name, _ in build(depth=1).named_parameters()}
    assert "blocks.0.qkv.weight" in names
    assert "blocks.0.qkv.bias" not in names
    assert {"blocks.0.proj.bias", "blocks.0.mlp.0.bias", "blocks.0.mlp.2.bias"} <= names


def test_tokens_are_patches_flattened_by_channel_row_and_column() -> None:
    encoder = build()
    images = torch.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3).float()
    patches = cut_patches(images, (2, 1))
    expected = [
        [[p[c, y, x].item() for c in range(4) for y in range(2) for x in range(1)] for p in image] for image in patches
    ]
    assert encoder.embed(images).tolist() == expected
    assert encoder.embed(patches).tolist() == expected
    assert encoder.embed(patches[:, 1:3]).shape == (2, 2, 8)


def test_positions_make_no_difference_and_permuting_tokens_permutes_what_comes_out() -> None:
    encoder = build().eval()
    x = tokens(encoder)
    base = encoder.encode(x, None).final
    index = torch.randint(0, 6, (2, 5))
    assert torch.equal(encoder.encode(x, index).final, base)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(encoder.encode(x[:, order], None).final, base[:, order])
    assert not torch.allclose(base[:, 0], base[:, 1])


def test_a_mask_hides_tokens() -> None:
    encoder = build().eval()
    x = tokens(encoder)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    other = x.clone()
    other[:, 3] = 7.0
    before, after = (encoder.encode(values, None, mask).final for values in (x, other))
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_dropout_follows_the_mode() -> None:
    encoder = build(dropout=0.5)
    x = tokens(encoder)
    assert (encoder.encode(x, None).final == 0).float().mean() == pytest.approx(0.5, abs=0.15)
    assert not (encoder.eval().encode(x, None).final == 0).any()


def test_features_are_the_mean_over_tokens_and_calling_it_gives_the_same() -> None:
    encoder = build().eval()
    images = torch.randn(3, 4, 4, 3)
    patches = cut_patches(images, (2, 1))
    expected = encoder.encode(patches.flatten(2), None).final.mean(1)
    for found in (encoder.features(images), encoder.features(patches), encoder(images)):
        torch.testing.assert_close(found, expected)


def test_it_fills_the_role_and_is_its_own_module() -> None:
    encoder = build()
    assert isinstance(encoder, encoders.TokenEncoder)
    assert isinstance(encoder, encoders.FeatureEncoder)
    assert encoder.module is encoder
    assert encoders.wrap(encoder) is encoder
    assert (encoder.dim, encoder.depth, encoder.num_prefix) == (8, 2, 0)
    assert (str(encoder.grid), encoder.patch, encoder.channels) == ("2x3", (2, 1), 4)
    assert not [name for name in encoder.state_dict() if "module" in name]


def test_attention_goes_through_the_seam_in_bfloat16() -> None:
    encoder = build().eval()
    calls = []

    class Counting(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(func is F.scaled_dot_product_attention)
            return func(*args, **(kwargs or {}))

    x = tokens(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder.encode(x, None).final
        with Counting():
            encoder.encode(x, None)
    assert calls
    assert not any(calls)  # answered before: run_block's own mode lies above
    torch.testing.assert_close(half.float(), encoder.encode(x, None).final, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_heads": 3},
            "num_heads=3 must divide the width 8, which is the values of a patch: 4 channels of 2x1 pixels",
        ),
        ({"num_heads": 0}, "num_heads=0 must be at least 1"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"grid": (0, 2)}, r"grid=\(0, 2\) must be several values, each at least 1 and at most 32,768"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("shape", [(1, 4, 4, 4), (1, 3, 4, 3), (1, 6, 4, 1, 2)])
def test_other_pixels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit the encoder: expected"):
        build().embed(torch.zeros(shape))


def test_it_fits_other_objectives() -> None:
    encoder = build(grid=4, patch=2, channels=3)
    tokenizer = sb.PatchTokenizer(image_size=8, patch_size=2)
    randsac = sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SquarePartitioner(sides=(2,)),
        target=sb.PixelTarget(tokenizer),
        reader=sb.DecoderReader(
            sb.LearnedSkipRouter(encoder_depth=2, decoder_depth=1),
            sb.SegmentDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2, memory_dim=encoder.dim),
        ),
    )
    randsac(torch.randn(2, 3, 8, 8)).loss.backward()


def test_tokens_are_the_input_and_features_take_a_mask():
    torch.manual_seed(0)
    encoder = sb.encoders.PostNormTransformer(grid=2, patch=2, depth=2, num_heads=2).eval()
    images, mask = torch.rand(2, 3, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    tokens = encoder.embed(images)
    assert torch.equal(encoder.encode(tokens, None).input, tokens)
    found = encoder.features(images, mask)
    assert torch.equal(found, encoder.encode(tokens, None, mask).final.mean(1))
    assert torch.equal(found, encoder(images, mask))
    assert (found - encoder(images)).abs().max() > 1e-3
