"""The query stream equals its twin, sees the content stream alone, and leaves the encoder's modules to the encoder."""

import copy

import pytest
import timm
import torch
from timm.layers import AttentionRope
from timm.models.vision_transformer import Block, ResPostBlock
from torch import nn

import ssl_blocks as sb
import ssl_blocks.parts.attention
from ssl_blocks import QueryStreamDecoder
from ssl_blocks.parts import QueryBlock
from ssl_blocks.parts.query_stream import QuerySharing
from tests.recipes import blank
from tests.reference import query_step, sincos_rows

GRID, DIM, HEADS, DEPTH = sb.Grid(3, 4), 16, 2, 2


def spread(module: nn.Module) -> nn.Module:
    """Weights that are none of the initial zeros and ones."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def make(**options) -> QueryStreamDecoder:
    torch.manual_seed(0)
    options = {"grid": GRID, "dim": DIM, "depth": DEPTH, "num_heads": HEADS, "norm": nn.LayerNorm(DIM)} | options
    spread(options["norm"]).double()
    return spread(QueryStreamDecoder(**options).double())


def inputs(batch: int = 2, prefix: int = 1, depth: int = DEPTH, *, blobs: bool = False):
    """Memories, masks, query and memory index of a random order of tokens, or of blobs at full length."""
    generator = torch.Generator().manual_seed(0)
    partitioner = sb.BlobPartitioner(counts=(4,)) if blobs else sb.TokenPartitioner()
    draw = sb.RandomSerializer()(partitioner(blank(batch), GRID, generator=generator), generator=generator)
    encoded, predicted = draw.windows(predict_first=prefix > 0)
    masks = sb.SegmentCausalMask()(draw, encoded, predicted, prefix, prefix > 0)
    shape = (batch, masks.memory.shape[-1], DIM)
    memories = tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(depth))
    return memories, masks, {"query_index": draw.order[:, predicted], "memory_index": draw.order[:, encoded]}


def test_a_query_stream_decoder_fills_the_role():
    assert isinstance(make(), sb.parts.Decoder)


@pytest.mark.parametrize(("prefix", "blobs"), [(1, False), (1, True), (0, True)])
def test_it_equals_query_blocks_by_hand(prefix, blobs):
    decoder = make()
    memories, masks, indices = inputs(prefix=prefix, blobs=blobs)
    actual = decoder(memories, masks, **indices)
    table = torch.tensor(sincos_rows(3, 4, DIM)).double()
    for image in range(2):
        g = torch.stack([table[i] for i in indices["query_index"][image].tolist()])
        mask = masks.memory.expand(2, -1, -1, -1)[image, 0]
        for layer, memory in zip(decoder.layers, memories, strict=True):
            g = query_step(layer.block, g, memory[image], mask)
        expected = decoder._norm[0](g)
        torch.testing.assert_close(
            actual[image], expected, rtol=0, atol=1e-6
        )  # the twin's table is in single precision


def test_queries_that_may_attend_to_nothing_keep_to_their_position():
    decoder = make(positions="learned")
    memories, masks, indices = inputs(prefix=0, blobs=True)
    empty = ~masks.memory[:, 0].any(-1)
    assert empty.any()
    memories = tuple(m.requires_grad_() for m in memories)
    out = decoder(memories, masks, **indices)
    gradients = torch.autograd.grad(out[empty].square().sum(), memories, retain_graph=True)
    assert all((gradient == 0).all() for gradient in gradients)
    out.square().sum().backward()
    for parameter in decoder.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


def test_no_query_sees_another():
    decoder = make()
    memories, masks, indices = inputs()
    before = decoder(memories, masks, **indices)
    moved = indices["query_index"].roll(1, 1)  # every query but its own position, each has another place now
    for row in range(GRID.num_tokens):
        other = moved.clone()
        other[:, row] = indices["query_index"][:, row]
        after = decoder(memories, masks, query_index=other, memory_index=indices["memory_index"])
        assert torch.equal(after[:, row], before[:, row])
        assert ((after - before).abs().amax(-1) > 1e-9).sum(1).tolist() == [GRID.num_tokens - 1] * 2


def test_content_reaches_exactly_the_queries_that_may_see_it():
    decoder = make()
    memories, masks, indices = inputs()
    before = decoder(memories, masks, **indices)
    for changed in range(masks.memory.shape[-1]):
        noisy = tuple(m.clone() for m in memories)
        for m in noisy:
            m[:, changed] += torch.randn(2, DIM, dtype=torch.float64)
        moved = (decoder(noisy, masks, **indices) - before).abs().amax(-1) > 1e-9
        assert torch.equal(moved, masks.memory[:, 0, :, changed].expand(2, -1))


def test_sixteen_bit_blocks_on_cpu_attend_explicitly(monkeypatch):
    calls, attend = [], sb.parts.explicit_attention

    def spy(query, key, *args, **kwargs):
        calls.append((query.shape[2], key.shape[2]))
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(ssl_blocks.parts.attention, "explicit_attention", spy)
    norm = nn.LayerNorm(DIM)
    decoder = make(norm=norm)
    memories, masks, indices = inputs()
    exact = decoder(memories, masks, **indices)
    assert not calls
    norm.bfloat16()
    rounded = decoder.bfloat16()(tuple(m.bfloat16() for m in memories), masks, **indices)
    assert calls == [(12, 12)] * DEPTH  # the last token is in no one's sight; a prefix token is
    assert (rounded - exact).norm() < 0.05 * exact.norm()


# --- weights of its own, and weights of the encoder -------------------------------------------------------------------


def encoder(**options) -> sb.encoders.TimmViT:
    torch.manual_seed(1)
    size = {"embed_dim": DIM, "depth": 4, "num_heads": HEADS, "class_token": True}
    return spread(sb.encoders.timm_vit(image_size=(6, 8), patch_size=2, **size, **options))


def test_the_norm_stays_the_encoders():
    vit = encoder()
    decoder = QueryStreamDecoder(grid=GRID, dim=DIM, depth=DEPTH, num_heads=HEADS, norm=vit.norm)
    both = nn.ModuleDict({"decoder": decoder, "encoder": vit})  # whichever comes first
    assert len(dict(both.named_parameters())) == len(dict(decoder.named_parameters())) + len(
        dict(vit.named_parameters())
    )
    assert [name for name in both.state_dict() if "norm.weight" in name] == ["encoder.module.norm.weight"]
    memories, masks, indices = inputs()
    memories = tuple(m.float() for m in memories)
    decoder(memories, masks, **indices).square().sum().backward()
    assert vit.norm.weight.grad.abs().sum() > 0
    twin = copy.deepcopy(both)
    assert twin["decoder"]._norm[0] is twin["encoder"].norm
    both["encoder"].norm.weight.data.zero_()
    both["encoder"].norm.bias.data.zero_()
    assert (decoder(memories, masks, **indices) == 0).all()
    assert (twin["decoder"](memories, masks, **indices) != 0).any()


def test_shared_blocks_are_the_encoders_first_ones_and_are_saved_once():
    vit = encoder()
    decoder = QueryStreamDecoder.sharing(vit, depth=2)
    assert (decoder.dim, decoder.depth, decoder.grid) == (DIM, 2, GRID)
    assert not list(decoder.parameters())
    assert not decoder.state_dict()
    memories, masks, indices = inputs()
    memories = tuple(m.float() for m in memories)
    actual = decoder(memories, masks, **indices)
    table = torch.tensor(sincos_rows(3, 4, DIM))
    g = table[indices["query_index"][0]]
    for block, memory in zip(vit.module.blocks[:2], memories, strict=True):
        g = query_step(block, g, memory[0], masks.memory[0, 0])
    torch.testing.assert_close(actual[0], vit.norm(g), rtol=1e-4, atol=1e-5)
    actual.square().sum().backward()
    for index, block in enumerate(vit.module.blocks):
        assert all((p.grad is not None) == (index < 2) for p in block.parameters())


def test_a_query_block_is_the_block_itself_where_content_asks_for_itself():
    """Run on its own content with all rights it is timm's block: layer scale, norms of queries and keys and all."""
    torch.manual_seed(0)
    options = {"qkv_bias": False, "qk_norm": True, "init_values": 0.5, "scale_attn_norm": True}
    block = spread(Block(DIM, HEADS, **options))
    x, mask = torch.randn(2, 5, DIM), torch.rand(1, 1, 5, 5) < 0.7
    mask |= torch.eye(5, dtype=torch.bool)
    out = QueryBlock(block)(x, x, mask, torch.zeros(1, 1, 5, 1, dtype=torch.bool))
    torch.testing.assert_close(out, block(x, attn_mask=mask), rtol=1e-5, atol=1e-6)


def test_dropout_and_stochastic_depth_follow_the_blocks_mode():
    block = Block(DIM, HEADS, attn_drop=0.5, proj_drop=0.5, drop_path=0.5)
    x, everything = torch.randn(64, 3, DIM), torch.ones(1, 1, 3, 3, dtype=torch.bool)
    query_block = QueryBlock(block)
    nothing = ~everything[..., :1]
    torch.manual_seed(0)
    dropped = query_block(x, x, everything, nothing)
    torch.manual_seed(0)
    assert torch.equal(dropped, block(x, attn_mask=everything))
    assert (dropped == x).all(-1).all(-1).any()  # some images pass both branches by
    block.eval()
    assert torch.equal(query_block(x, x, everything, nothing), query_block(x, x, everything, nothing))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (ResPostBlock(DIM, HEADS), "block must be timm's Block with its Attention to run on queries, got ResPostBlock"),
        (Block(DIM, HEADS, attn_layer=AttentionRope), "got Block with AttentionRope"),
        (nn.Linear(2, 2), "got Linear with NoneType"),
    ],
)
def test_other_blocks_are_refused(block, message):
    with pytest.raises(TypeError, match=message):
        QueryBlock(block)


def test_an_encoder_without_query_blocks_is_refused():
    class Plain:
        grid, dim, norm = GRID, DIM, nn.LayerNorm(DIM)

    assert isinstance(encoder(), QuerySharing)
    with pytest.raises(TypeError, match=r"Plain has no query_blocks\(depth\), so its weights cannot be shared"):
        QueryStreamDecoder.sharing(Plain(), depth=2)
    parallel = sb.encoders.TimmViT(
        timm.create_model("vit_small_patch16_18x2_224", img_size=32, depth=2, embed_dim=12, num_heads=2, num_classes=0)
    )
    with pytest.raises(TypeError, match="got ParallelThingsBlock with NoneType"):
        QueryStreamDecoder.sharing(parallel, depth=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 must divide dim=16"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"num_heads": None}, "num_heads=None: give it for blocks of the decoder's own, or give blocks instead"),
        ({"blocks": [nn.Identity()] * 2}, "num_heads=2: give it for blocks of the decoder's own, or give blocks"),
        ({"num_heads": None, "blocks": [nn.Identity()]}, "depth=2 must be the number of blocks, 1"),
        ({"dim": 18}, "dim=18 must be a positive multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("depth", [0, 5])
def test_more_steps_than_blocks_are_refused(depth):
    with pytest.raises(ValueError, match=f"depth={depth} must be at least 1 and at most"):
        encoder().query_blocks(depth)


def test_memories_that_do_not_fit_are_refused():
    decoder = make()
    memories, masks, indices = inputs(depth=3)
    with pytest.raises(ValueError, match="depth=2 needs one memory per layer, got 3"):
        decoder(memories, masks, **indices)
    with pytest.raises(ValueError, match="dim=16 must be the width of the memories, 8"):
        decoder(tuple(m[..., :8] for m in memories[:2]), masks, **indices)


def test_linear_layers_start_xavier_uniform_with_zero_bias_and_the_norm_as_it_was():
    norm = nn.LayerNorm(64)
    nn.init.constant_(norm.weight, 3.0)
    decoder = QueryStreamDecoder(grid=GRID, dim=64, depth=1, num_heads=2, norm=norm, mlp_ratio=2.0, eps=1e-3)
    linears = [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    assert [linear.out_features for linear in linears] == [192, 64, 128, 64]
    assert {m.eps for m in decoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}
    assert (norm.weight == 3).all()
    for linear in linears:
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.95 * bound < linear.weight.abs().max() <= bound
        assert (linear.bias == 0).all()
