import copy
import dataclasses
import itertools
import math
import pickle
import re

import pytest
import torch
from hypothesis import given, strategies as st

from ssl_blocks import Grid, Segments, Serialization
from ssl_blocks.values import gather_tokens
from tests.reference import hierarchies


def serialization(batch: int = 3, sizes: tuple[int, ...] = (2, 3, 1)) -> Serialization:
    """A random order with the same step sizes in every image."""
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(batch, sum(sizes), generator=generator).argsort(1)
    step = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).expand(batch, -1)
    return Serialization(order=order, step=step, step_sizes=sizes)


def test_grid_counts_height_times_width_and_prints_height_first():
    assert Grid(2, 5).num_tokens == 10
    assert (str(Grid(2, 5)), repr(Grid(2, 5))) == ("2x5", "Grid(2, 5)")
    assert (Grid(2, 5).height, Grid(2, 5).width) == Grid(2, 5).sizes == (2, 5)


@pytest.mark.parametrize("sizes", [(7,), (2, 3, 4), (3, 1, 2, 2)])
def test_grid_of_any_number_of_axes_counts_the_last_one_fastest(sizes):
    grid = Grid(*sizes)
    assert (grid.ndim, grid.num_tokens, str(grid)) == (len(sizes), math.prod(sizes), "x".join(map(str, sizes)))
    places = itertools.product(*(range(size) for size in sizes))
    assert list(zip(*(axis.tolist() for axis in grid.coordinates()), strict=True)) == list(places)
    with pytest.raises(ValueError, match=rf"grid {grid} has {len(sizes)} dimension\(s\), but height and width are"):
        _ = grid.width


def test_grids_are_equal_by_their_sizes_can_be_copied_and_not_changed():
    assert len({Grid(2, 3), Grid(2, 3), Grid(3, 2), Grid(2, 3, 1)}) == 3
    assert pickle.loads(pickle.dumps(Grid(2, 3, 4))) == copy.deepcopy(Grid(2, 3, 4)) == Grid(2, 3, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Grid(2, 3).sizes = (4, 4)


@pytest.mark.parametrize("sizes", [(), (0,), (0, 3), (3, 0), (-1, 2), (2, 2, 0)])
def test_grid_without_cells_is_refused(sizes):
    with pytest.raises(ValueError, match=re.escape(f"Grid{sizes} must have at least one size, and every size")):
        Grid(*sizes)


@pytest.mark.parametrize("rest", [(), (2,), (3, 2, 2)])
def test_gather_tokens_picks_rows_as_indexing_does(generator, rest):
    x = torch.rand(2, 5, *rest, generator=generator)
    index = torch.randint(0, 5, (2, 7), generator=generator)
    picked = gather_tokens(x, index)
    assert picked.shape == (2, 7, *rest)
    for b in range(2):
        for slot in range(7):
            assert torch.equal(picked[b, slot], x[b, index[b, slot]])


@given(st.data())
def test_rank_is_the_inverse_of_order(data):
    n = data.draw(st.integers(1, 9))
    order = torch.tensor([data.draw(st.permutations(range(n))) for _ in range(data.draw(st.integers(1, 3)))])
    s = Serialization(order=order, step=torch.zeros_like(order))
    for b in range(order.shape[0]):
        assert [order[b, slot].item() for slot in s.rank[b]] == list(range(n))


@pytest.mark.parametrize("window", [slice(None), slice(0, 4), slice(2, None), slice(0, 0)])
def test_put_inverts_take_and_leaves_zero_elsewhere(generator, window):
    s = serialization()
    x = torch.rand(3, 6, 2, 2, generator=generator) + 1
    back = s.put(s.take(x, window), window)
    for b in range(3):
        inside = s.order[b, window].tolist()
        for position in range(6):
            expected = x[b, position] if position in inside else torch.zeros(2, 2)
            assert torch.equal(back[b, position], expected)


def test_take_reads_in_sequence_order():
    s = Serialization(order=torch.tensor([[2, 0, 1], [1, 2, 0]]), step=torch.zeros(2, 3, dtype=torch.long))
    assert s.take(torch.tensor([[10, 11, 12], [20, 21, 22]])).tolist() == [[12, 10, 11], [21, 22, 20]]


def test_take_and_put_pass_gradients_only_through_their_window():
    s = serialization()
    x = torch.rand(3, 6, requires_grad=True)
    s.put(s.take(x, slice(0, 4)), slice(0, 4)).sum().backward()
    expected = s.put(torch.ones(3, 4), slice(0, 4))
    assert torch.equal(x.grad, expected)


def test_windows_leave_out_the_last_step_of_the_encoder_and_the_first_of_the_decoder():
    assert serialization(sizes=(2, 3, 1)).windows() == (slice(0, 5), slice(2, 6))
    assert serialization(sizes=(16, 48)).windows() == (slice(0, 16), slice(16, 64))  # MAE: 16 encoded, 48 predicted


def test_windows_predict_every_step_when_the_first_is_predicted_too():
    assert serialization(sizes=(2, 3, 1)).windows(predict_first=True) == (slice(0, 5), slice(0, 6))


def test_windows_are_the_whole_sequence_where_sizes_differ_between_images():
    order = torch.arange(6).expand(2, -1)
    s = Serialization(order=order, step=order // 2)
    assert s.windows() == s.windows(predict_first=True) == (slice(0, 6), slice(0, 6))


def test_one_single_step_encodes_nothing_and_predicts_nothing():
    encoded, predicted = serialization(sizes=(4,)).windows()
    assert list(range(4))[encoded] == list(range(4))[predicted] == []


@given(hierarchies())
def test_check_accepts_every_nested_hierarchy(hierarchy):
    levels, counts = hierarchy
    Segments(levels=tuple(torch.tensor(level) for level in levels), counts=tuple(counts)).check()


@given(hierarchies(), st.data())
def test_check_accepts_a_second_level_exactly_when_no_segment_lies_in_two_partitions(hierarchy, data):
    (fine, *_), counts = hierarchy
    coarse = [[data.draw(st.integers(0, 1)) for _ in ids] for ids in fine]
    nested = all(
        a == b
        for ids, parents in zip(fine, coarse, strict=True)
        for i, a in zip(ids, parents, strict=True)
        for j, b in zip(ids, parents, strict=True)
        if i == j
    )
    segments = Segments(levels=(torch.tensor(fine), torch.tensor(coarse)), counts=(counts[0], 2))
    if nested:
        segments.check()
    else:
        with pytest.raises(ValueError, match="levels must be nested: a segment of level 0 lies in two of level 1"):
            segments.check()


def test_check_names_the_level_that_is_not_nested():
    a, b, c = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 1]])
    with pytest.raises(ValueError, match="a segment of level 1 lies in two of level 2"):
        Segments(levels=(a, b, c), counts=(4, 2, 2)).check()


@pytest.mark.parametrize(("ids", "span"), [([[0, 1, 2]], r"0\.\.2"), ([[0, -1, 1]], r"-1\.\.1")])
def test_check_catches_ids_out_of_range(ids, span):
    with pytest.raises(ValueError, match=rf"ids of level 0 must lie in \[0, 2\), got {span}"):
        Segments(levels=(torch.tensor(ids),), counts=(2,)).check()


def test_check_catches_ids_out_of_range_in_a_coarser_level():
    with pytest.raises(ValueError, match=r"ids of level 1 must lie in \[0, 1\), got 0\.\.1"):
        Segments(levels=(torch.tensor([[0, 1]]), torch.tensor([[0, 1]])), counts=(2, 1)).check()


@pytest.mark.parametrize(("levels", "counts"), [(1, (2, 1)), (2, (2,)), (0, ())])
def test_segments_need_one_count_per_level(levels, counts):
    ids = torch.zeros(1, 2, dtype=torch.long)
    names = str(counts).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"counts={names} must name one count for each of the {levels} levels"):
        Segments(levels=(ids,) * levels, counts=counts)


def test_segments_need_levels_of_one_shape():
    with pytest.raises(
        ValueError,
        match=r"levels=\(Tensor\(1, 2\), Tensor\(1, 3\)\) must be several values, each of shape \[B, N\], N = 2",
    ):
        Segments(levels=(torch.zeros(1, 2).long(), torch.zeros(1, 3).long()), counts=(1, 1))


def test_segments_need_step_sizes_that_add_up():
    with pytest.raises(ValueError, match=r"step_sizes=\(1, 2\) must add up to the 4 tokens of an image"):
        Segments(levels=(torch.tensor([[0, 0, 1, 1]]),), counts=(2,), step_sizes=(1, 2))


@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (4,)])
def test_check_compares_step_sizes_with_the_ids(sizes):
    segments = Segments(levels=(torch.tensor([[0, 1, 0, 1]]),), counts=(2,), step_sizes=sizes)
    with pytest.raises(ValueError, match=rf"step_sizes=\({sizes[0]},.*but these are \[\[2, 2\]\]"):
        segments.check()


def test_values_that_hold_tensors_compare_by_identity():
    segments = Segments(levels=(torch.tensor([[0, 1]]),), counts=(2,))
    assert segments == segments
    assert segments != Segments(levels=(torch.tensor([[0, 1]]),), counts=(2,))
    assert len({segments}) == 1


@pytest.mark.parametrize(
    ("order", "step", "sizes", "message"),
    [
        ([[0, 1, 2, 3], [0, 1, 1, 2]], [0, 0, 1, 1], None, "each of the 4 positions once, but image 1 names 3 of them"),
        ([[3, 1, 2, 0]] * 2, [0, 1, 0, 1], None, "never fall along the sequence"),
        ([[3, 1, 2, 0]] * 2, [-1, 0, 0, 1], None, "must begin at 0 or above"),
        ([[3, 1, 2, 0]] * 2, [0, 0, 0, 1], (2, 2), r"step_sizes=\(2, 2\) must be the sizes of steps"),
    ],
)
def test_a_serialization_that_is_none_is_refused_on_request(order, step, sizes, message):
    steps = torch.tensor(step).expand(2, -1)
    with pytest.raises(ValueError, match=message):
        Serialization(torch.tensor(order), steps, sizes).check()
    Serialization(torch.tensor([[3, 1, 2, 0]] * 2), torch.tensor([0, 0, 1, 1]).expand(2, -1), (2, 2)).check()
