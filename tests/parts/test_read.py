"""Readers equal what they say they are, written out."""

import dataclasses

import pytest
import torch
from hypothesis import given, strategies as st

import ssl_blocks as sb
from ssl_blocks.parts.read import joint_mask
from tests.recipes import images

GRID = sb.Grid(4, 4)


def vit(**options):
    torch.manual_seed(0)
    size = {"image_size": 8, "patch_size": 2, "depth": 2, "embed_dim": 16, "num_heads": 2}
    return sb.encoders.timm_vit(**(size | options))


def inputs(encoder, mask, partitioner=None):
    partitioner = sb.SubsetPartitioner(hidden=(0.25, 0.5)) if partitioner is None else partitioner
    batch = images(2, 8)
    draw = sb.OrderedSerializer()(partitioner(batch, GRID, generator=torch.Generator().manual_seed(0)))
    encoded, predicted = draw.windows()
    content = encoder.embed(draw.take(sb.PatchTokenizer(image_size=8, patch_size=2)(batch), encoded))
    masks = mask(draw, encoded, predicted, encoder.num_prefix)
    return content, draw.order[:, encoded], draw.order[:, predicted], masks


@given(st.data(), st.integers(0, 3), st.integers(1, 4), st.sampled_from([1, 2]))
def test_the_joint_mask_is_four_blocks_cell_by_cell(data, s, t, batch):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))

    def drawn(rows, columns, images):
        return torch.rand(images, 1, rows, columns, generator=generator) > 0.5

    has_source, has_feedback = data.draw(st.booleans()), data.draw(st.booleans())
    masks = sb.AttentionMasks(
        source=drawn(s, s, 1) if has_source else None,
        target=drawn(t, t, batch),
        memory=drawn(t, s, 1),
        feedback=drawn(s, t, batch) if has_feedback else None,
    )
    found = joint_mask(masks)
    assert found.shape == (batch, 1, s + t, s + t)
    for image in range(batch):
        for q in range(s + t):
            for k in range(s + t):
                if q < s:
                    name, row, column = ("source", q, k) if k < s else ("feedback", q, k - s)
                else:
                    name, row, column = ("memory", q - s, k) if k < s else ("target", q - s, k - s)
                mask = getattr(masks, name)
                missing = name == "source"  # all see all; feedback: none sees any
                expected = missing if mask is None else mask[image % len(mask), 0, row, column].item()
                assert found[image, 0, q, k].item() == expected, (name, row, column)


@pytest.mark.parametrize("options", [{}, {"class_token": True, "reg_tokens": 1}])
def test_a_query_reader_runs_the_encoder_on_content_and_queries_together(options):
    encoder, reader = vit(**options), sb.QueryReader(16)
    content, index, query_index, masks = inputs(encoder, sb.SegmentCausalMask())
    found = reader(encoder, content, index, query_index, masks)
    for image in range(2):
        rows = [reader.query[0, 0] for _ in query_index[image]]
        tokens = torch.stack([*content[image], *rows])[None]
        places = torch.tensor([[*index[image].tolist(), *query_index[image].tolist()]])
        expected = encoder.encode(tokens, places, joint_mask(masks)).final[:, -len(rows) :]
        torch.testing.assert_close(found[image : image + 1], expected)


def test_feedback_lets_content_see_queries_and_nothing_else_does():
    encoder, reader = vit(), sb.QueryReader(16)
    halves = sb.SubsetPartitioner(hidden=0.5)
    states = {}
    for feedback in (False, True):
        content, index, query_index, masks = inputs(encoder, sb.FullMask(feedback=feedback), halves)
        tokens = torch.cat([content, reader.query.expand(2, 8, -1)], dim=1)
        places = torch.cat([index, query_index], dim=1)
        states[feedback] = encoder.encode(tokens, places, joint_mask(masks)).final
    alone = encoder.encode(content, index).final
    torch.testing.assert_close(states[False][:, :8], alone)
    assert not torch.allclose(states[True][:, :8], alone, atol=1e-3)
    everything = encoder.encode(tokens, places).final  # under no mask at all
    torch.testing.assert_close(states[True], everything)


def test_a_decoder_reader_is_encoder_router_and_decoder():
    encoder = vit(class_token=True)
    router = sb.LearnedSkipRouter(encoder_depth=2, decoder_depth=1)
    decoder = sb.SegmentDecoder(grid=GRID, dim=16, depth=1, num_heads=2)
    reader = sb.DecoderReader(router, decoder)
    content, index, query_index, masks = inputs(encoder, sb.SegmentCausalMask())
    states = encoder.encode(content, index, masks.source)
    memories = router(states.hidden, encoder.norm)
    expected = decoder(memories, masks, query_index=query_index, memory_index=index)
    assert torch.equal(reader(encoder, content, index, query_index, masks), expected)
    assert reader.dim == 16


def test_a_decoder_reader_refuses_feedback():
    encoder = vit()
    reader = sb.DecoderReader(
        sb.LastLayerRouter(decoder_depth=1), sb.SegmentDecoder(grid=GRID, dim=16, depth=1, num_heads=2)
    )
    content, index, query_index, masks = inputs(encoder, sb.FullMask(feedback=True), sb.SubsetPartitioner(hidden=0.5))
    with pytest.raises(ValueError, match=r"masks\.feedback lets content see queries"):
        reader(encoder, content, index, query_index, masks)
    reader(encoder, content, index, query_index, dataclasses.replace(masks, feedback=None))


def test_queries_are_spared_by_weight_decay():
    assert sb.QueryReader(16).no_weight_decay() == {"query"}
