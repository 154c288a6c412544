import pytest
import torch
from timm.layers import Mlp
from torch import nn

import ssl_blocks.parts.attention
from ssl_blocks import (
    AttentionMasks,
    BlobPartitioner,
    Grid,
    MaskTokenDecoder,
    QueryStreamDecoder,
    RandomSerializer,
    SegmentCausalMask,
    SegmentDecoder,
    Serialization,
    SquarePartitioner,
)
from ssl_blocks.parts import Decoder, PositionTable, explicit_attention, sincos_table
from tests.recipes import blank

GRID, DIM, HEADS, DEPTH = Grid(4, 6), 16, 2, 2


def make(**options) -> SegmentDecoder:
    """A decoder whose weights are none of the initial zeros and ones."""
    torch.manual_seed(0)
    decoder = SegmentDecoder(**{"grid": GRID, "dim": DIM, "depth": DEPTH, "num_heads": HEADS, **options}).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return decoder


def squares(batch: int = 2, num_prefix: int = 0) -> tuple[Serialization, AttentionMasks, torch.Tensor, torch.Tensor]:
    """Serialization, masks, query and memory index of squares, 4 tokens each."""
    generator = torch.Generator().manual_seed(0)
    s = RandomSerializer()(SquarePartitioner(sides=(2,))(blank(batch), GRID), generator=generator)
    encoded, predicted = s.windows()
    return s, SegmentCausalMask()(s, encoded, predicted, num_prefix), s.order[:, predicted], s.order[:, encoded]


def blobs(batch: int = 3) -> tuple[Serialization, AttentionMasks, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    s = RandomSerializer()(BlobPartitioner(counts=(5,))(blank(batch), GRID, generator=generator), generator=generator)
    return s, SegmentCausalMask()(s, *s.windows(), 0), s.order, s.order


def memories_for(masks: AttentionMasks, batch: int, dim: int = DIM, depth: int = DEPTH) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, masks.memory.shape[-1], dim)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(depth))


def torch_layer(layer: nn.Module, activation: str) -> nn.TransformerDecoderLayer:
    """The same layer as ``nn.TransformerDecoderLayer``, pre-norm."""
    twin = nn.TransformerDecoderLayer(
        DIM, HEADS, 4 * DIM, dropout=0.0, activation=activation, batch_first=True, norm_first=True, layer_norm_eps=1e-6
    ).double()
    ours, cross = layer.self_attn, layer.cross_attn
    pairs = [
        (twin.self_attn.in_proj_weight, ours.qkv.weight),
        (twin.self_attn.in_proj_bias, ours.qkv.bias),
        (twin.self_attn.out_proj.weight, ours.proj.weight),
        (twin.self_attn.out_proj.bias, ours.proj.bias),
        (twin.multihead_attn.in_proj_weight, torch.cat([cross.query.weight, cross.memory.weight])),
        (twin.multihead_attn.in_proj_bias, torch.cat([cross.query.bias, cross.memory.bias])),
        (twin.multihead_attn.out_proj.weight, cross.proj.weight),
        (twin.multihead_attn.out_proj.bias, cross.proj.bias),
        (twin.linear1.weight, layer.mlp.fc1.weight),
        (twin.linear1.bias, layer.mlp.fc1.bias),
        (twin.linear2.weight, layer.mlp.fc2.weight),
        (twin.linear2.bias, layer.mlp.fc2.bias),
    ]
    for name in ("norm1", "norm2", "norm3"):
        pairs += [(getattr(twin, name).weight, getattr(layer, name).weight)]
        pairs += [(getattr(twin, name).bias, getattr(layer, name).bias)]
    with torch.no_grad():
        for theirs, mine in pairs:
            theirs.copy_(mine)
    return twin


def test_a_segment_decoder_fills_the_role():
    assert isinstance(make(), Decoder)


@pytest.mark.parametrize(("options", "activation"), [({}, "gelu"), ({"act_layer": nn.ReLU}, "relu")])
def test_layers_equal_torchs_pre_norm_decoder_layers(options, activation):
    decoder = make(**options)
    s, masks, query_index, memory_index = squares()
    memories = memories_for(masks, 2)
    x = torch.stack([sincos_table(GRID, DIM)[row] for row in query_index]).double()  # a query is its position alone
    for layer, memory in zip(decoder.layers, memories, strict=True):
        hidden, unseen = ~masks.target[0, 0], ~masks.memory[0, 0]  # True = hidden, in nn.Transformer
        x = torch_layer(layer, activation)(x, memory, tgt_mask=hidden, memory_mask=unseen)
    expected = decoder.norm(x)
    actual = decoder(memories, masks, query_index=query_index, memory_index=memory_index)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert s.step_sizes == (4,) * 6


@pytest.mark.parametrize("draw", [squares, blobs])
def test_a_prediction_depends_on_those_queries_that_it_may_see_and_on_no_other(draw):
    decoder = make()
    _, masks, query_index, memory_index = draw()
    batch, t = query_index.shape
    memories = memories_for(masks, batch)
    before = decoder(memories, masks, query_index=query_index, memory_index=memory_index)
    for changed in range(t):
        other = query_index.clone()
        other[:, changed] = (other[:, changed] + 5) % GRID.num_tokens
        after = decoder(memories, masks, query_index=other, memory_index=memory_index)
        moved = (after - before).abs().amax(-1) > 1e-9
        assert torch.equal(moved, masks.target[:, 0, :, changed].expand(batch, -1))


@pytest.mark.parametrize("draw", [squares, blobs])
def test_memories_reach_exactly_the_predictions_that_see_them_directly_or_through_queries(draw):
    decoder = make()
    _, masks, query_index, memory_index = draw()
    batch = query_index.shape[0]
    memories = memories_for(masks, batch)
    before = decoder(memories, masks, query_index=query_index, memory_index=memory_index)
    for changed in range(masks.memory.shape[-1]):
        noisy = tuple(m.clone() for m in memories)
        for m in noisy:
            m[:, changed] += torch.randn(batch, DIM, dtype=torch.float64)
        after = decoder(noisy, masks, query_index=query_index, memory_index=memory_index)
        moved = (after - before).abs().amax(-1) > 1e-9
        assert torch.equal(moved, masks.memory[:, 0, :, changed].expand(batch, -1))


def test_each_layer_attends_to_its_own_memory():
    decoder = make()
    _, masks, query_index, memory_index = squares()
    first, second = memories_for(masks, 2)
    a = decoder((first, second), masks, query_index=query_index, memory_index=memory_index)
    b = decoder((second, first), masks, query_index=query_index, memory_index=memory_index)
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_queries_without_any_memory_and_their_gradients_stay_finite(dtype):
    decoder = make(positions="learned").to(dtype)
    s, masks, query_index, memory_index = blobs()
    assert not masks.memory[:, 0][s.step == 0].any()
    memories = tuple(m.to(dtype).requires_grad_() for m in memories_for(masks, 3))
    out = decoder(memories, masks, query_index=query_index, memory_index=memory_index)
    out.square().sum().backward()
    assert out.isfinite().all()
    for tensor in (*memories, *decoder.parameters()):
        assert tensor.grad.isfinite().all()


def test_queries_without_any_memory_pass_no_gradient_to_it():
    decoder = make()
    s, masks, query_index, memory_index = blobs()
    memories = tuple(m.requires_grad_() for m in memories_for(masks, 3))
    out = decoder(memories, masks, query_index=query_index, memory_index=memory_index)
    gradients = torch.autograd.grad(out[s.step == 0].square().sum(), memories, retain_graph=True)
    assert all((gradient == 0).all() for gradient in gradients)
    gradients = torch.autograd.grad(out[s.step == 1].square().sum(), memories)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_an_image_alone_is_decoded_as_in_its_batch():
    decoder = make()
    _, masks, query_index, memory_index = blobs()
    memories = memories_for(masks, 3)
    together = decoder(memories, masks, query_index=query_index, memory_index=memory_index)
    for b in range(3):
        one = slice(b, b + 1)
        alone = decoder(
            tuple(m[one] for m in memories),
            AttentionMasks(source=masks.source[one], target=masks.target[one], memory=masks.memory[one]),
            query_index=query_index[one],
            memory_index=memory_index[one],
        )
        torch.testing.assert_close(alone, together[one])


def test_full_length_decoding_equals_sliced_decoding():
    decoder = make()
    s, masks, query_index, memory_index = squares()
    sliced = decoder(memories_for(masks, 2), masks, query_index=query_index, memory_index=memory_index)
    whole = Serialization(order=s.order, step=s.step)
    full_masks = SegmentCausalMask()(whole, *whole.windows(), 0)
    memories = tuple(nn.functional.pad(m, (0, 0, 0, 4), value=7.0) for m in memories_for(masks, 2))
    full = decoder(memories, full_masks, query_index=s.order, memory_index=s.order)
    torch.testing.assert_close(full[:, 4:], sliced)


def test_prefix_memories_are_seen_by_every_query():
    decoder = make()
    _, masks, query_index, memory_index = squares(num_prefix=1)
    memories = memories_for(masks, 2)
    out = decoder(memories, masks, query_index=query_index, memory_index=memory_index)
    changed = tuple(torch.cat([-m[:, :1], m[:, 1:]], 1) for m in memories)
    after = decoder(changed, masks, query_index=query_index, memory_index=memory_index)
    assert ((out - after).abs().amax(-1) > 1e-6).all()


def test_sixteen_bit_layers_on_cpu_attend_explicitly_in_both_places(monkeypatch):
    calls = []

    def spy(query, key, *args, **kwargs):
        calls.append(key.shape[2])
        return explicit_attention(query, key, *args, **kwargs)

    monkeypatch.setattr(ssl_blocks.parts.attention, "explicit_attention", spy)
    decoder = make()
    _, masks, query_index, memory_index = squares(num_prefix=1)
    memories = memories_for(masks, 2)
    exact = decoder(memories, masks, query_index=query_index, memory_index=memory_index)
    assert not calls
    low = tuple(m.bfloat16() for m in memories)
    rounded = decoder.bfloat16()(low, masks, query_index=query_index, memory_index=memory_index)
    assert calls == [20, 21] * DEPTH  # queries, then memories with the prefix token
    assert (rounded - exact).norm() < 0.05 * exact.norm()


# --- positions --------------------------------------------------------------------------------------------------------


def test_sincos_positions_are_fixed_and_left_out_of_checkpoints():
    decoder = make(positions="sincos")
    assert torch.equal(decoder.positions.table.float(), sincos_table(GRID, DIM))
    assert not [name for name in decoder.state_dict() if "positions" in name]
    SegmentDecoder(grid=Grid(9, 9), dim=DIM, depth=DEPTH, num_heads=HEADS).load_state_dict(make().state_dict())


def test_learned_positions_get_gradients_only_where_they_are_asked_for():
    decoder = make(positions="learned")
    _, masks, query_index, memory_index = squares(batch=1)
    decoder(memories_for(masks, 1), masks, query_index=query_index, memory_index=memory_index).square().sum().backward()
    felt = decoder.positions.table.grad.abs().amax(-1) > 0
    assert sorted(query_index[0].tolist()) == felt.nonzero().flatten().tolist()


def test_a_table_shared_with_the_encoder_gets_gradients_from_both():
    table = nn.Parameter(torch.randn(1, 1 + GRID.num_tokens, DIM, dtype=torch.float64))
    decoder = make(positions=PositionTable(table, num_prefix=1))
    _, masks, query_index, memory_index = squares()
    memories = memories_for(masks, 2)

    def loss(encoder_side: torch.Tensor) -> torch.Tensor:
        shifted = tuple(m + encoder_side[0, 1:][memory_index] for m in memories)
        return decoder(shifted, masks, query_index=query_index, memory_index=memory_index).square().sum()

    (both,) = torch.autograd.grad(loss(table), table)
    (decoder_only,) = torch.autograd.grad(loss(table.detach()), table)
    encoder_leaf = table.detach().clone().requires_grad_()
    (encoder_only,) = torch.autograd.grad(loss(encoder_leaf), encoder_leaf)
    assert decoder_only.abs().sum() > 0
    assert encoder_only.abs().sum() > 0
    torch.testing.assert_close(both, decoder_only + encoder_only)
    assert decoder.positions.table is table


def test_a_module_of_the_callers_is_used_as_it_is_and_keeps_its_weights():
    class Coordinates(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, DIM)

        def forward(self, index):
            cell = torch.stack([index // GRID.width, index % GRID.width], -1)
            return self.linear(cell.to(self.linear.weight.dtype))

    positions = Coordinates()
    before = {name: value.clone() for name, value in positions.state_dict().items()}
    decoder = SegmentDecoder(grid=GRID, dim=DIM, depth=DEPTH, num_heads=HEADS, positions=positions)
    assert decoder.positions is positions
    for name, value in positions.state_dict().items():
        assert torch.equal(value, before[name])
    _, masks, query_index, memory_index = squares()
    memories = tuple(m.float() for m in memories_for(masks, 2))
    out = decoder(memories, masks, query_index=query_index, memory_index=memory_index)
    assert out.shape == (2, 20, DIM)


# --- widths, weights and messages -------------------------------------------------------------------------------------


def test_memories_of_another_width_are_projected():
    decoder = make(memory_dim=24)
    _, masks, query_index, memory_index = squares()
    memories = memories_for(masks, 2, dim=24)
    out = decoder(memories, masks, query_index=query_index, memory_index=memory_index)
    assert out.shape == (2, 20, DIM)
    same = make()
    same.load_state_dict({k: v for k, v in decoder.state_dict().items() if not k.startswith("memory_proj")})
    projected = tuple(decoder.memory_proj(m) for m in memories)
    torch.testing.assert_close(same(projected, masks, query_index=query_index, memory_index=memory_index), out)


def test_memories_of_the_decoders_width_are_not_projected():
    for memory_dim in (None, DIM):
        assert not list(make(memory_dim=memory_dim).memory_proj.parameters())


def test_linear_layers_start_xavier_uniform_with_zero_bias():
    decoder = SegmentDecoder(grid=GRID, dim=64, depth=1, num_heads=2, memory_dim=32)
    linears = [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 1 + 2 + 3 + 2
    for linear in linears:
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.95 * bound < linear.weight.abs().max() <= bound
        assert (linear.bias == 0).all()


def test_mlp_ratio_and_eps_reach_the_layers():
    decoder = make(mlp_ratio=2.5, eps=1e-3)
    assert decoder.layers[0].mlp.fc1.out_features == 40
    assert {m.eps for m in decoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 must divide dim=16"),
        ({"num_heads": 0}, "num_heads=0 must be at least 1"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"dim": 18, "num_heads": 2}, "dim=18 must be a positive multiple of 4 for sine-cosine positions"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_memories_is_refused(count):
    _, masks, query_index, memory_index = squares()
    with pytest.raises(ValueError, match=f"depth=2 needs one memory per layer, got {count}"):
        make()(memories_for(masks, 2, depth=count), masks, query_index=query_index, memory_index=memory_index)


@pytest.mark.parametrize("kind", [SegmentDecoder, MaskTokenDecoder, QueryStreamDecoder])
def test_the_activation_is_the_callers(kind):
    own = {"norm": nn.LayerNorm(16)} if kind is QueryStreamDecoder else {}
    sizes = {"grid": Grid(4, 4), "dim": 16, "depth": 2, "num_heads": 2}
    for options, wanted in (({}, nn.GELU), ({"act_layer": nn.ReLU}, nn.ReLU)):
        found = [part.act for part in kind(**sizes, **own, **options).modules() if isinstance(part, Mlp)]
        assert [type(act) for act in found] == [wanted] * 2
