"""What follows a token is read off the token before it."""

import dataclasses

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.parts import NextReader, WeightedSkipRouter
from ssl_blocks.testing import LeakError, assert_no_leak
from tests.recipes import images


def build(step=1, *, predict_first=False, **options):
    torch.manual_seed(0)
    encoder = sb.encoders.timm_vit(image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, **options)
    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.TokenPartitioner() if step == 1 else sb.SquarePartitioner(sides=(2,)),
        serializer=sb.OrderedSerializer(),
        reader=NextReader(16, num_tokens=16, step=step),
        target=sb.PixelTarget(tokenizer),
        predict_first=predict_first,
    )


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("options", [{}, {"class_token": True, "reg_tokens": 1}])
def test_predictions_are_those_of_a_causal_encoder_one_segment_later(step, options):
    objective, batch = build(step, **options), images(2)
    draw = objective.draw(batch)
    encoder, order = objective.encoder, draw.order
    block = torch.arange(16) // step
    prefix = encoder.num_prefix
    seen = torch.zeros(prefix + 16, prefix + 16, dtype=torch.bool)
    seen[:, :prefix] = True
    seen[prefix:, prefix:] = block[:, None] >= block
    content = encoder.embed(draw.take(objective.tokenizer(batch)))
    states = encoder.encode(content, order, seen[None, None]).final[:, prefix:]
    out = objective(batch, draw)
    torch.testing.assert_close(out.predictions, objective.head(states)[:, : 16 - step], rtol=1e-4, atol=1e-5)
    assert torch.equal(out.index, order[:, step:])


def test_the_first_token_follows_the_last_prefix_token():
    objective, batch = build(predict_first=True, class_token=True, reg_tokens=1), images(2)
    out = objective(batch)
    assert out.index.shape == (2, 16)
    assert torch.equal(out.predictions[0, 0], out.predictions[1, 0])  # it has seen nothing
    assert not torch.equal(out.predictions[0, 1], out.predictions[1, 1])
    assert_no_leak(objective, images(2), draws=2)


@pytest.mark.parametrize(("step", "whole"), [(1, True), (4, False)])
def test_nothing_leaks(step, whole):
    objective = build(step)
    objective.serializer = Whole() if whole else objective.serializer
    told = "the reader counts on the order of tokens, so whether rows follow their own queries was not looked at"
    assert told in assert_no_leak(objective, images(2), draws=2).hints


class Whole(sb.OrderedSerializer):
    """Forgets that steps have a size: the whole sequence is encoded."""

    def __call__(self, segments, *, generator=None):
        return dataclasses.replace(super().__call__(segments, generator=generator), step_sizes=None)


def test_a_step_that_is_not_that_of_the_segments_leaks_or_is_refused():
    objective = build(4)
    objective.reader.step = 1  # a token is read off its neighbour in the same square, which has seen it
    with pytest.raises(ValueError, match=r"step=1 must be the number of tokens .* only 12 are encoded"):
        objective(images(2))
    objective.serializer = Whole()
    with pytest.raises(LeakError, match="depends on position"):
        assert_no_leak(objective, images(2))


@pytest.mark.parametrize("step", [0, 16])
def test_wrong_steps_are_refused(step):
    with pytest.raises(ValueError, match=f"step={step} must be at least 1"):
        NextReader(16, num_tokens=16, step=step)


def test_content_that_sees_queries_is_refused():
    objective = build()
    objective.mask = sb.FullMask(feedback=True)
    with pytest.raises(ValueError, match=r"masks.feedback lets content see queries, of which NextReader has none"):
        objective(images(2))


# --- what a decoder without self-attention reads ----------------------------------------------------------------------


def test_weighted_skips_sum_states_and_normalise_each():
    torch.manual_seed(0)
    router = WeightedSkipRouter(encoder_depth=2, decoder_depth=2, dim=8)
    states = tuple(torch.randn(2, 5, 8) for _ in range(3))
    with torch.no_grad():
        router.norms[1].weight.mul_(2.0)
    for layer, memory in enumerate(router(states, torch.nn.Identity())):
        total = sum(router.mix.weight[layer, i] * state for i, state in enumerate(states))
        normed = (total - total.mean(-1, keepdim=True)) / (total.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(memory, normed * (layer + 1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"encoder_depth=2 must be the encoder's depth, 1"):
        router(states[:2], torch.nn.Identity())


def test_a_reader_hands_the_input_to_a_router_that_takes_it():
    objective = build()
    encoder, batch = objective.encoder, images(2)
    seen = []

    class Spy:
        takes_input = True

        def __call__(self, hidden, norm):
            seen.extend(hidden)
            return (norm(hidden[-1]),)

    decoder = sb.SegmentDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2)
    objective.reader = sb.DecoderReader(Spy(), decoder)
    draw = objective.draw(batch)
    objective(batch, draw)
    content = encoder.embed(draw.take(objective.tokenizer(batch), slice(0, 15)))
    assert len(seen) == 1 + encoder.depth
    torch.testing.assert_close(seen[0], encoder.encode(content, draw.order[:, :15]).input)


def test_queries_without_self_attention_know_nothing_of_each_other():
    torch.manual_seed(0)
    kind = {"grid": sb.Grid(4, 4), "dim": 16, "depth": 2, "num_heads": 2}
    memories, index = (torch.randn(2, 5, 16),) * 2, torch.arange(6).expand(2, -1)
    masks = sb.AttentionMasks(None, torch.ones(1, 1, 6, 6, dtype=torch.bool), torch.ones(1, 1, 6, 5, dtype=torch.bool))
    alone = sb.AttentionMasks(None, masks.target[..., :1, :1], masks.memory[..., :1, :])
    for decoder, same in ((sb.SegmentDecoder(**kind, self_attention=False, mask_token=True), True),
                          (sb.SegmentDecoder(**kind), False)):  # fmt: skip
        places = {"memory_index": index[:, :5]}
        together = decoder(memories, masks, query_index=index, **places)[:, :1]
        one = decoder(memories, alone, query_index=index[:, :1], **places)
        assert torch.allclose(one, together, rtol=1e-4, atol=1e-5) == same
    marked = sb.SegmentDecoder(**kind, self_attention=False, mask_token=True)
    assert marked.no_weight_decay() == {"mask_token"}
    assert not any("self_attn" in name or "norm1" in name for name, _ in marked.named_parameters())


# --- steps that are neither given nor predicted -----------------------------------------------------------------------


def partial(num_predicted, mask=None, **options):
    torch.manual_seed(0)
    base = build(**options)
    return sb.SegmentPrediction(
        encoder=base.encoder,
        tokenizer=base.tokenizer,
        partitioner=sb.SubsetPartitioner(hidden=(0.25, 0.25, 0.25)),
        serializer=sb.OrderedSerializer(),
        mask=mask,
        reader=sb.QueryReader(16),
        target=base.target,
        num_predicted=num_predicted,
    )


@pytest.mark.parametrize("mask", [sb.SegmentCausalMask(), sb.FullMask()])
def test_what_is_left_out_changes_nothing_and_is_not_encoded(mask):
    steps = 2 if isinstance(mask, sb.SegmentCausalMask) else 1
    some, every, batch = partial(steps, mask), partial(None, mask), images(2)
    every.load_state_dict(some.state_dict())
    draw = some.draw(batch, generator=torch.Generator().manual_seed(0))
    out, whole = some(batch, draw), every(batch, draw)
    assert out.index.shape == (2, 4 * steps)
    assert torch.equal(out.given.sum(1), torch.tensor([4, 4]))
    assert torch.equal(out.given.gather(1, draw.order).long(), (draw.step == 0).long())
    if steps == 2:  # under a full mask queries see each other
        torch.testing.assert_close(out.predictions, whole.predictions[:, :8], rtol=1e-4, atol=1e-5)
    assert_no_leak(some, batch, draws=2)


def test_a_leak_out_of_what_is_left_out_is_found():
    objective = partial(1, sb.FullMask())
    real = objective._windows

    def windows(draw):
        return slice(0, 16), real(draw)[1]

    objective._windows = windows
    assert_no_leak(objective, images(2), draws=2)  # the mask hides it
    objective.mask = lambda draw, e, p, prefix, first: sb.AttentionMasks(
        None, torch.ones(1, 1, 4, 4, dtype=torch.bool), torch.ones(1, 1, 4, 16, dtype=torch.bool)
    )
    with pytest.raises(LeakError, match=r"neither given nor predicted|depends on position"):
        assert_no_leak(objective, images(2))


def test_at_least_one_step_is_predicted():
    with pytest.raises(ValueError, match="num_predicted=0 must be at least 1"):
        partial(0)
