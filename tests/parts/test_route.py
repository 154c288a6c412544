import pytest
import torch
from torch import nn

from ssl_blocks import LastLayerRouter, LearnedSkipRouter, MatchedRouter
from ssl_blocks.parts import SkipMemoryRouter
from tests.reference import mix_layers


def hidden_states(generator: torch.Generator, depth: int = 3, dtype: torch.dtype = torch.float64, batch: int = 2):
    return tuple(
        (10**k * torch.randn(batch, 5, 8, generator=generator, dtype=dtype)).requires_grad_() for k in range(depth)
    )


def layer_norm(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> nn.LayerNorm:
    """A norm that is not the identity."""
    norm = nn.LayerNorm(8).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(8, generator=generator, dtype=dtype) + 0.5)
        norm.bias.copy_(torch.randn(8, generator=generator, dtype=dtype))
    return norm


def test_routers_fill_the_role():
    assert isinstance(LearnedSkipRouter(encoder_depth=2, decoder_depth=1), SkipMemoryRouter)
    assert isinstance(LastLayerRouter(decoder_depth=1), SkipMemoryRouter)
    assert isinstance(MatchedRouter(encoder_depth=1, decoder_depth=1), SkipMemoryRouter)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("encoder_depth", "decoder_depth"), [(3, 2), (1, 4), (4, 1)])
def test_memories_are_explicit_sums_of_normed_layers_and_a_bias(generator, encoder_depth, decoder_depth, batch):
    router = LearnedSkipRouter(encoder_depth=encoder_depth, decoder_depth=decoder_depth).double()
    hidden, norm = hidden_states(generator, encoder_depth, batch=batch), layer_norm(generator)
    memories = router(hidden, norm)
    expected = mix_layers(hidden, norm, router.mix.weight, router.mix.bias)
    assert len(memories) == decoder_depth
    for ours, theirs in zip(memories, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_equal_those_of_explicit_sums(generator):
    router = LearnedSkipRouter(encoder_depth=3, decoder_depth=2).double()
    hidden, norm = hidden_states(generator), layer_norm(generator)
    sought = [*router.parameters(), *norm.parameters(), *hidden]
    weights = torch.randn(2, 2, 5, 8, generator=generator, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((torch.stack(tuple(memories)) * weights).sum(), sought)
        for memories in (router(hidden, norm), mix_layers(hidden, norm, router.mix.weight, router.mix.bias))
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, b)


def test_gradients_under_bfloat16_autocast_are_close_to_single_precision(generator):
    router = LearnedSkipRouter(encoder_depth=3, decoder_depth=2)
    norm = layer_norm(generator, torch.float32)
    hidden = hidden_states(generator, dtype=torch.float32, batch=64)
    goal = torch.randn(2, 64, 5, 8, generator=generator)

    def gradients() -> tuple[torch.Tensor, ...]:
        memories = torch.stack(router(hidden, norm))
        return torch.autograd.grad((memories.float() - goal).square().sum(), list(router.parameters()))

    exact = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        assert router(hidden, norm)[0].dtype == torch.bfloat16
        rounded = gradients()
    for a, b in zip(rounded, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.01 * b.norm()


def test_the_bias_is_there_and_belongs_to_a_decoder_layer(generator):
    router = LearnedSkipRouter(encoder_depth=2, decoder_depth=2).double()
    nn.init.zeros_(router.mix.weight)
    router.mix.bias.data = torch.tensor([1.0, -2.0], dtype=torch.float64)
    first, second = router(hidden_states(generator, 2), nn.Identity())
    assert (first == 1).all()
    assert (second == -2).all()


def test_a_wrong_number_of_hidden_states_is_refused(generator):
    router = LearnedSkipRouter(encoder_depth=4, decoder_depth=2).double()
    with pytest.raises(ValueError, match="encoder_depth=4 must be the encoder's depth, 3"):
        router(hidden_states(generator), nn.Identity())


def test_last_layer_router_repeats_the_normed_last_layer(generator):
    hidden, norm = hidden_states(generator), layer_norm(generator)
    memories = LastLayerRouter(decoder_depth=3)(hidden, norm)
    assert len(memories) == 3
    for memory in memories:
        assert torch.equal(memory, norm(hidden[-1]))


@pytest.mark.parametrize(("depth", "queries"), [(6, 6), (6, 3), (6, 2), (6, 1)])
def test_matched_router_hands_on_the_raw_states_after_every_so_many_blocks(generator, depth, queries):
    hidden = hidden_states(generator, depth)
    memories = MatchedRouter(encoder_depth=depth, decoder_depth=queries)(hidden, layer_norm(generator))
    # content blocks counted from 1; a query block follows after every so many
    expected = [hidden[number - 1] for number in range(1, depth + 1) if number % (depth // queries) == 0]
    assert len(memories) == queries
    assert all(ours is theirs for ours, theirs in zip(memories, expected, strict=True))


def test_layers_that_cannot_be_matched_are_refused(generator):
    for queries in (4, 0, 12):
        with pytest.raises(ValueError, match=f"decoder_depth={queries} must (divide encoder_depth=6|be at least 1)"):
            MatchedRouter(encoder_depth=6, decoder_depth=queries)
    with pytest.raises(ValueError, match="encoder_depth=4 must be the encoder's depth, 3"):
        MatchedRouter(encoder_depth=4, decoder_depth=2)(hidden_states(generator), nn.Identity())
