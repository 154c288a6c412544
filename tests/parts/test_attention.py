import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import nn

import ssl_blocks.parts.attention
from ssl_blocks.parts import explicit_attention
from ssl_blocks.parts.attention import additive, run_block, split_empty_rows, wants_seam
from tests.reference import attend


def heads(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Query ``[2, 3, 4, 8]``, key ``[2, 3, 5, 8]`` and value ``[2, 3, 5, 6]``."""
    return tuple(torch.randn(2, 3, *size, generator=generator, dtype=dtype) for size in ((4, 8), (5, 8), (5, 6)))


def some_mask(kind: str, generator: torch.Generator) -> torch.Tensor | None:
    """A mask for ``heads`` that leaves every query something; 'empty' ones leave two queries nothing."""
    allowed = torch.rand(2, 1, 4, 5, generator=generator) < 0.5
    allowed[..., 0] = True
    if kind.startswith("empty"):
        allowed[0, 0, 1] = allowed[1, 0, 3] = False
    if kind == "none":
        return None
    if kind == "shared bool":
        return allowed[:1, 0, :, :]
    if kind.endswith("bool"):
        return allowed
    bias = torch.randn(2, 1, 4, 5, generator=generator, dtype=torch.float64)
    return bias.masked_fill(~allowed, -torch.inf)


KINDS = ["none", "bool", "shared bool", "additive", "empty bool", "empty additive"]


@pytest.fixture
def explicit_calls(monkeypatch) -> list[torch.dtype]:
    """The dtype of every query that explicit attention gets."""
    calls = []

    def spy(query, *args, **kwargs):
        calls.append(query.dtype)
        return explicit_attention(query, *args, **kwargs)

    monkeypatch.setattr(ssl_blocks.parts.attention, "explicit_attention", spy)
    return calls


class SelfAttention(nn.Module):
    """Attend with the tokens ``[B, n, 16]`` themselves as queries, keys and values of two heads."""

    def forward(self, x, attn_mask=None, **options):
        q = x.unflatten(2, (2, 8)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, attn_mask, **options).transpose(1, 2).flatten(2)


class NoAttention(nn.Module):
    def forward(self, x):
        return x.square()


# --- explicit attention -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_explicit_attention_equals_attention_by_loop(generator, kind, scale):
    q, k, v = heads(generator)
    mask = some_mask(kind, generator)
    torch.testing.assert_close(explicit_attention(q, k, v, mask, scale=scale), attend(q, k, v, mask, scale))


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_explicit_attention_equals_torchs_in_values_and_gradients(generator, kind, scale, dtype):
    inputs = [x.requires_grad_() for x in heads(generator, dtype)]
    mask = some_mask(kind, generator)
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
    weights = torch.randn(2, 3, 4, 6, generator=generator, dtype=dtype)
    ours = explicit_attention(*inputs, mask, scale=scale)
    theirs = F.scaled_dot_product_attention(*inputs, mask, scale=scale)
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, **tolerance)
    for a, b in zip(*(torch.autograd.grad((out * weights).sum(), inputs) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("kind", ["empty bool", "empty additive"])
def test_a_row_that_may_attend_to_nothing_is_zero_and_its_gradients_finite(generator, kind):
    inputs = [x.requires_grad_() for x in heads(generator)]
    out = explicit_attention(*inputs, some_mask(kind, generator))
    assert (out[0, :, 1] == 0).all()
    assert (out[1, :, 3] == 0).all()
    assert (out[0, :, 0] != 0).all()
    query, key, value = torch.autograd.grad(out.square().sum(), inputs)
    assert (query[0, :, 1] == 0).all()
    assert all(gradient.isfinite().all() for gradient in (query, key, value))


def test_explicit_attention_drops_weights_and_scales_the_rest(generator):
    q, k, _ = heads(generator)
    weights = explicit_attention(q, k, torch.eye(5, dtype=torch.float64).expand(2, 3, 5, 5))
    torch.manual_seed(0)
    dropped = explicit_attention(q, k, torch.eye(5, dtype=torch.float64).expand(2, 3, 5, 5), dropout_p=0.5)
    kept = dropped != 0
    assert 0.3 < kept.double().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * weights[kept])


@given(st.data())
def test_split_empty_rows_opens_exactly_the_rows_that_are_empty(data):
    rows, keys = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    mask = torch.tensor([[data.draw(st.booleans()) for _ in range(keys)] for _ in range(rows)])[None, None]
    opened, empty = split_empty_rows(mask)
    for q in range(rows):
        nothing = not any(mask[0, 0, q].tolist())
        assert empty[0, 0, q, 0].item() == nothing
        assert opened[0, 0, q].tolist() == ([True] * keys if nothing else mask[0, 0, q].tolist())


# --- the seam ---------------------------------------------------------------------------------------------------------


def test_bfloat16_blocks_on_cpu_attend_explicitly(generator, explicit_calls):
    x = torch.randn(2, 5, 16, generator=generator).bfloat16()
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    out = run_block(SelfAttention(), x, attn_mask=mask)
    assert explicit_calls == [torch.bfloat16]
    torch.testing.assert_close(out.float(), SelfAttention()(x.float(), mask), rtol=0.05, atol=0.05)


def test_blocks_under_autocast_attend_explicitly(generator, explicit_calls):
    block = nn.Sequential(nn.Linear(16, 16), SelfAttention())
    x = torch.randn(2, 5, 16, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        out = run_block(block, x)
    assert explicit_calls == [torch.bfloat16]
    torch.testing.assert_close(out.float(), block(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_blocks_in_other_precisions_keep_torchs_attention(generator, explicit_calls, dtype):
    x = torch.randn(2, 5, 16, generator=generator, dtype=dtype)
    assert torch.equal(run_block(SelfAttention(), x), SelfAttention()(x))
    assert not explicit_calls


def test_wants_seam_in_bfloat16_or_autocast_on_cpu_only():
    x = torch.zeros(1)
    assert wants_seam(x.bfloat16())
    assert not wants_seam(x.half())
    assert not wants_seam(x)
    assert not wants_seam(x.bfloat16().to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert wants_seam(x)
    with torch.autocast("cpu", enabled=False):
        assert not wants_seam(x)


def test_float16_scores_that_would_overflow_stay_finite():
    x = torch.full((1, 5, 16), 100.0)  # scores of 160,000 before they are scaled
    block = SelfAttention()
    with torch.autocast("cpu", torch.float16):
        assert run_block(block, x.half()).isfinite().all()


@pytest.mark.parametrize("options", [{"is_causal": True}, {"enable_gqa": True}])
def test_calls_that_explicit_attention_does_not_know_stay_with_torch(generator, explicit_calls, options):
    x = torch.randn(2, 5, 16, generator=generator).bfloat16()
    assert torch.equal(run_block(SelfAttention(), x, **options), SelfAttention()(x, **options))
    assert not explicit_calls


def test_positional_causality_stays_with_torch(generator, explicit_calls):
    def block(x):
        return F.scaled_dot_product_attention(x, x, x, None, 0.0, True)

    x = torch.randn(1, 2, 5, 8, generator=generator).bfloat16()
    assert torch.equal(run_block(block, x), block(x))
    assert not explicit_calls


def test_a_block_may_name_query_key_and_value(generator, explicit_calls):
    def block(x):
        return F.scaled_dot_product_attention(query=x, key=x, value=x, is_causal=False)

    x = torch.randn(1, 2, 5, 8, generator=generator).bfloat16()
    torch.testing.assert_close(run_block(block, x), block(x), rtol=0.05, atol=0.05)
    assert explicit_calls == [torch.bfloat16]


def test_dropout_and_scale_pass_through_the_seam(generator):
    x = torch.randn(2, 5, 16, generator=generator).bfloat16()
    q = x.unflatten(2, (2, 8)).transpose(1, 2)
    torch.manual_seed(0)
    expected = explicit_attention(q, q, q, dropout_p=0.5, scale=0.1).transpose(1, 2).flatten(2)
    torch.manual_seed(0)
    assert torch.equal(run_block(SelfAttention(), x, dropout_p=0.5, scale=0.1), expected)
    assert not torch.equal(run_block(SelfAttention(), x, dropout_p=0.5, scale=0.1), expected)  # drawn anew
    whole = run_block(SelfAttention(), x, scale=0.1)
    assert not torch.equal(whole, expected)
    assert torch.equal(whole, run_block(SelfAttention(), x, scale=0.1))


def test_attention_outside_the_block_and_in_other_threads_is_untouched(generator, explicit_calls):
    x = torch.randn(1, 2, 5, 8, generator=generator).bfloat16()
    counted = {}

    def attend_elsewhere():
        F.scaled_dot_product_attention(x, x, x)
        counted["in the other thread"] = len(explicit_calls)

    def block(x):
        thread = threading.Thread(target=attend_elsewhere)
        thread.start()
        thread.join()
        return F.scaled_dot_product_attention(x, x, x)

    run_block(block, x)
    assert counted == {"in the other thread": 0}
    assert len(explicit_calls) == 1
    F.scaled_dot_product_attention(x, x, x)
    assert len(explicit_calls) == 1


def test_a_block_that_fails_leaves_no_seam_behind(generator, explicit_calls):
    def block(x):
        raise KeyError("broken")

    x = torch.randn(1, 2, 5, 8, generator=generator).bfloat16()
    with pytest.raises(KeyError, match="broken"):
        run_block(block, x)
    F.scaled_dot_product_attention(x, x, x)
    assert not explicit_calls


def test_a_block_that_does_not_call_torchs_attention_is_refused_where_the_choice_matters():
    message = r"NoAttention did not call torch\.nn\.functional\.scaled_dot_product_attention: .*TIMM_FUSED_ATTN"
    with pytest.raises(RuntimeError, match=message):
        run_block(NoAttention(), torch.zeros(1, 2, 16, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match=message):
        run_block(NoAttention(), torch.zeros(1, 2, 16))
    assert torch.equal(run_block(NoAttention(), torch.ones(1, 2, 16)), torch.ones(1, 2, 16))


def test_arguments_and_gradients_pass_through_the_seam(generator):
    def block(x, shift, *, factor):
        return F.scaled_dot_product_attention(x, x, x) * factor + shift

    x = torch.randn(1, 2, 5, 8, generator=generator).bfloat16().requires_grad_()
    out = run_block(block, x, 3.0, factor=2.0)
    torch.testing.assert_close(out, block(x, 3.0, factor=2.0), rtol=0.05, atol=0.05)
    out.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("autocast", [False, True])
def test_a_mask_to_be_added_is_what_a_kernel_makes_of_bools(autocast: bool) -> None:
    query, key, value = torch.randn(3, 2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        bias = additive(mask, torch.zeros(1, 5, 8))
        found, wanted, blind = (
            torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=m) for m in (bias, mask, None)
        )
    assert bias.dtype == found.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, blind)  # positive control
