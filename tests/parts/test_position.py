import copy

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from ssl_blocks import Grid
from ssl_blocks.parts import PositionTable, sincos_table
from tests.reference import sincos_rows


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([4, 8, 12, 64]))
def test_sincos_table_equals_scalar_mathematics(height, width, dim):
    table = sincos_table(Grid(height, width), dim)
    assert table.dtype == torch.float32
    expected = torch.tensor(sincos_rows(height, width, dim), dtype=torch.float64)
    torch.testing.assert_close(table.double(), expected, rtol=0, atol=1e-7)


def test_the_first_half_codes_the_column_and_the_second_the_row():
    table = sincos_table(Grid(3, 5), 16).unflatten(0, (3, 5))
    column, row = table[..., :8], table[..., 8:]
    assert torch.equal(column, column[:1].expand_as(column))
    assert torch.equal(row, row[:, :1].expand_as(row))
    assert len({tuple(c) for c in column[0].tolist()}) == 5
    assert len({tuple(r) for r in row[:, 0].tolist()}) == 3


def test_each_half_holds_its_sines_and_then_its_cosines():
    table = sincos_table(Grid(1, 4), 8)
    for x in range(4):
        angles = torch.tensor([x, x / 100.0])
        torch.testing.assert_close(table[x, :4], torch.cat([angles.sin(), angles.cos()]))
        assert table[x, 4:].tolist() == [0, 0, 1, 1]


def test_sincos_table_has_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        assert sincos_table(Grid(2, 2), 8).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dim", [0, 2, 6, -4])
def test_widths_that_are_no_multiple_of_four_are_refused(dim):
    with pytest.raises(ValueError, match=f"dim={dim} must be (at least 1|a positive multiple of 4)"):
        sincos_table(Grid(2, 2), dim)


@pytest.mark.parametrize("shape", [(6, 4), (1, 6, 4)])
@pytest.mark.parametrize("num_prefix", [0, 2])
def test_lookup_picks_rows_by_index_and_passes_over_the_prefix(generator, shape, num_prefix):
    table = torch.rand(shape, generator=generator)
    index = torch.tensor([[3, 0, 3], [1, 2, 0]])
    positions = PositionTable(table, num_prefix=num_prefix)
    assert positions.num_positions == 6 - num_prefix
    rows = positions(index)
    for b in range(2):
        for slot in range(3):
            assert torch.equal(rows[b, slot], table.reshape(6, 4)[num_prefix + index[b, slot]])


def test_a_fixed_table_is_a_buffer_that_checkpoints_leave_out():
    positions = PositionTable.sincos(Grid(2, 3), 8)
    assert not list(positions.parameters())
    assert torch.equal(dict(positions.named_buffers())["table"], sincos_table(Grid(2, 3), 8))
    assert positions.state_dict() == {}
    positions.load_state_dict(PositionTable.sincos(Grid(4, 4), 8).state_dict())  # another grid's
    assert positions.to(torch.float64)(torch.tensor([[0]])).dtype == torch.float64


def test_a_learned_table_is_drawn_with_deviation_one_fiftieth():
    torch.manual_seed(0)
    positions = PositionTable.learned(Grid(20, 30), 64)
    (table,) = positions.parameters()
    assert table.shape == (600, 64)
    assert abs(table.mean()) < 5e-4
    assert abs(table.std() - 0.02) < 2e-4
    assert list(positions.state_dict()) == ["table"]
    assert positions.no_weight_decay() == {"table"}


def test_a_shared_parameter_gets_gradients_from_both_users():
    encoder = nn.Module()
    encoder.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))  # one prefix row
    positions = PositionTable(encoder.pos_embed, num_prefix=1)
    assert positions.table is encoder.pos_embed
    (positions(torch.tensor([[0, 2, 2]])).sum() + 10 * encoder.pos_embed[0, 0].sum()).backward()
    assert encoder.pos_embed.grad[0, :, 0].tolist() == [10, 1, 0, 2, 0]
    with torch.no_grad():
        encoder.pos_embed += 3
    assert torch.equal(positions(torch.tensor([[1]])), torch.full((1, 1, 4), 3.0))


def test_a_shared_parameter_stays_shared_when_both_users_are_copied_together():
    table = nn.Parameter(torch.zeros(4, 4))
    both = copy.deepcopy(nn.ModuleList([PositionTable(table), PositionTable(table)]))
    assert both[0].table is both[1].table
    assert len(list(both.parameters())) == 1
