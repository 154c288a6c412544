"""nn.TransformerEncoder: norm first or last, batch first or not, gathered or part of the user's own model."""

import copy
import inspect

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.encoders import TorchEncoder, wrap
from ssl_blocks.testing import check_token_encoder
from tests.encoders.families import TABLE, causal, images_for, raster, shaken

FORMS = [(norm_first, batch_first) for norm_first in (True, False) for batch_first in (True, False)]


def layers(width=16, *, depth=2, norm=None, **options):
    options = {"dropout": 0.0, "batch_first": True, **options}
    layer = nn.TransformerEncoderLayer(width, 2, 32, **options)
    return nn.TransformerEncoder(layer, depth, norm=norm, enable_nested_tensor=False)


def build(stem=None, grid=None, positions="learned", **options):
    parts = {name: options.pop(name) for name in ("prefix", "module") if name in options}
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(16, 16)) if positions == "learned" else positions
    return TorchEncoder(
        options.pop("encoder", None) or layers(**options),
        stem=stem or nn.Conv2d(3, 16, 4, 4),
        grid=grid or sb.Grid(4, 4),
        positions=table,
        **parts,
    )


@pytest.mark.parametrize(("norm_first", "batch_first"), FORMS)
@pytest.mark.parametrize("norm", [None, nn.LayerNorm(16)], ids=["no norm", "norm"])
def test_torchs_own_output_is_reproduced(norm_first, batch_first, norm):
    encoder = build(norm_first=norm_first, batch_first=batch_first, norm=norm)
    shaken(encoder).eval()
    images = images_for(encoder)
    encoded = encoder.encode(encoder.embed(images), raster(encoder))
    module = encoder.module
    x = module.stem(images).flatten(2).transpose(1, 2) + module.positions
    expected = module.encoder(x) if batch_first else module.encoder(x.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(encoded.final, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.native(images), expected, rtol=0, atol=1e-5)
    assert (encoder.norm is norm) == (norm is not None) or isinstance(encoder.norm, nn.LayerNorm)


@pytest.mark.parametrize(
    ("norm_first", "batch_first", "num_prefix"),
    [(True, True, 2), (True, False, 0), (False, True, 0), (False, False, 2)],
)
def test_the_public_check_passes(norm_first, batch_first, num_prefix, generator):
    build_one = TABLE.of_torch(norm_first=norm_first, batch_first=batch_first, num_prefix=num_prefix)
    encoder = build_one()
    assert encoder.num_prefix == num_prefix
    check_token_encoder(encoder, generator=generator)


@pytest.mark.parametrize("activation", [nn.functional.gelu, nn.functional.silu, nn.ReLU(), "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_masks_activations_and_missing_biases_equal_torchs_own(activation, bias, norm_first):
    encoder = build(activation=activation, bias=bias, norm_first=norm_first)
    shaken(encoder).eval()
    layer, mask = encoder.module.encoder.layers[0], causal(encoder)
    x = torch.randn(2, 16, 16)
    expected = layer(x, src_mask=~mask.expand(-1, 2, -1, -1).flatten(0, 1))
    found = next(iter(encoder._blocks(None)))(x, attn_mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("site", ["dropout", "dropout1", "dropout2"])
def test_dropout_sits_where_torch_has_it(norm_first, site):
    encoder = build(norm_first=norm_first)
    layer, x = shaken(encoder).module.encoder.layers[0].train(), torch.randn(2, 16, 16)
    everything = layer(x)
    layer.get_submodule(site).p = 1.0  # all is dropped, so nothing is left to chance
    found = next(iter(encoder._blocks(None)))(x, attn_mask=None)
    torch.testing.assert_close(found, layer(x), rtol=0, atol=1e-5)
    assert not torch.allclose(found, everything, atol=1e-2)


@pytest.mark.parametrize("norm_first", [True, False])
def test_dropout_of_attention_draws_as_torchs_own(norm_first):
    encoder = build(norm_first=norm_first).train()
    layer, x = encoder.module.encoder.layers[0], torch.randn(2, 16, 16)
    plain = layer(x)
    layer.self_attn.dropout = 0.5
    torch.manual_seed(3)
    expected = layer(x)
    torch.manual_seed(3)
    found = next(iter(encoder._blocks(None)))(x, attn_mask=None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)


# Parts


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.ModuleDict({"patchify": nn.Conv2d(3, 16, 4, 4)})
        self.table = nn.Parameter(torch.randn(1, 18, 16))
        self.tokens = nn.Parameter(torch.randn(1, 2, 16))
        self.layers = layers(norm=nn.LayerNorm(16), norm_first=True)
        self.head = nn.Linear(16, 3)

    def wrapped(self):
        parts = {"stem": self.front["patchify"], "positions": self.table, "prefix": self.tokens}
        return TorchEncoder(self.layers, grid=sb.Grid(4, 4), module=self, **parts)


def test_a_model_of_ones_own_is_exported_as_it_is(generator):
    model = Own().eval()
    encoder = model.wrapped()
    assert encoder.module is model
    assert set(encoder.state_dict()) == {f"module.{key}" for key in model.state_dict()}
    assert encoder.no_weight_decay() == {"module.table", "module.tokens"}
    assert encoder.num_prefix == 2
    check_token_encoder(encoder, generator=generator)
    images = images_for(encoder)
    x = model.front["patchify"](images).flatten(2).transpose(1, 2)
    x = torch.cat([model.tokens.expand(2, -1, -1), x], dim=1) + model.table
    final = encoder.encode(encoder.embed(images), raster(encoder)).final
    torch.testing.assert_close(final, model.layers(x), rtol=0, atol=1e-5)


def test_a_copy_runs_on_its_own_weights():
    encoder = Own().eval().wrapped()
    twin = copy.deepcopy(encoder)
    images = images_for(encoder)
    before = encoder.features(images)
    shaken(twin)
    assert torch.equal(encoder.features(images), before)
    assert not torch.equal(twin.features(images), before)


def test_parts_are_gathered_under_plain_names():
    encoder = build(prefix=nn.Parameter(torch.zeros(1, 1, 16)))
    names = {name.split(".")[0] for name in encoder.module.state_dict()}
    assert names == {"stem", "encoder", "positions", "prefix"}
    fixed = build(positions=sb.parts.sincos_table(sb.Grid(4, 4), 16))
    assert "positions" in dict(fixed.module.named_buffers())
    assert {n for n, _ in fixed.module.named_parameters() if "." not in n} == set()


def test_without_positions_none_are_added(generator):
    encoder = build(positions=None)
    tokens = torch.randn(2, 16, 16)
    assert torch.equal(encoder.eval().encode(tokens, raster(encoder)).final, encoder.encode(tokens, None).final)
    check_token_encoder(encoder, has_positions=False, generator=generator)


@pytest.mark.parametrize("member", ["module", "norm", "grid", "patch", "embed", "encode", "features"])
def test_members_are_found_without_calling_getattr(member):
    inspect.getattr_static(build(), member)


# Refusals


class OwnLayer(nn.TransformerEncoderLayer):
    pass


def with_odd_layer():
    encoder = layers()
    encoder.layers[1] = nn.TransformerEncoderLayer(24, 2, 32)
    return encoder


def with_own_layer():
    encoder = layers()
    encoder.layers[0] = OwnLayer(16, 2)
    return encoder


def with_zero_attention():
    encoder = layers()
    encoder.layers[1].self_attn = nn.MultiheadAttention(16, 2, add_zero_attn=True)
    return encoder


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stem": nn.Conv2d(3, 16, 3, 1, 1)}, TypeError, r"TorchEncoder has a Conv2d\(.* stem, which mixes pixels"),
        ({"stem": nn.Conv2d(3, 16, 4, 4, padding=1)}, TypeError, "which mixes pixels"),
        ({"stem": nn.Conv2d(3, 16, 4, 4, dilation=2)}, TypeError, "which mixes pixels"),
        ({"width": 24, "positions": None}, ValueError, r"layer 0 has width 24, but stem\.out_channels=16"),
        ({"encoder": with_odd_layer()}, ValueError, r"layer 1 has width 24, but stem\.out_channels=16"),
        ({"norm": nn.LayerNorm(8)}, ValueError, r"encoder\.norm normalises \(8,\), but stem\.out_channels=16"),
        ({"depth": 0}, ValueError, "encoder has no layers"),
        (
            {"grid": sb.Grid(4, 5)},
            ValueError,
            r"positions of shape \(16, 16\) must have a row of 16 for each .* 20 token",
        ),
        ({"positions": torch.zeros(16, 8)}, ValueError, r"positions of shape \(16, 8\) must have a row of 16"),
        (
            {"prefix": torch.zeros(1, 2, 16), "positions": torch.zeros(1, 17, 16)},
            ValueError,
            "16 tokens, or for the 2 prefix tokens and these",
        ),
        ({"prefix": torch.zeros(2, 16)}, ValueError, r"prefix of shape \(2, 16\) must be \[1, P, 16\]"),
        ({"module": nn.Linear(2, 2)}, ValueError, "stem is no part of module=Linear, so its weights would not be exp"),
        ({"encoder": with_own_layer()}, TypeError, r"layer 0 is a OwnLayer, expected nn\.Tran"),
        ({"encoder": with_zero_attention()}, ValueError, "layer 1 attends to more than the sequence itself"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_the_reason(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


def test_layers_alone_have_no_stem():
    with pytest.raises(TypeError, match=r"has no patch stem: use TorchEncoder\(encoder, stem=\.\.\., grid=\.\.\.\)"):
        wrap(layers())
