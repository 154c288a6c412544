import re

import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import chisquare

import ssl_blocks.parts.partition
from ssl_blocks import (
    BlobPartitioner,
    Grid,
    ShuffledPartitioner,
    SquarePartitioner,
    SubsetPartitioner,
    TokenPartitioner,
)
from ssl_blocks.parts import SegmentPartitioner
from ssl_blocks.parts.partition import nearest_gaussian
from ssl_blocks.randomness import random_ranks
from tests.recipes import blank
from tests.reference import nearest_gaussians, square_ids, subset_ids, token_points

grids = st.builds(Grid, st.integers(1, 8), st.integers(1, 8))
batches = st.integers(1, 4)

ALL = {
    "tokens": TokenPartitioner(),
    "squares": SquarePartitioner(sides=(2, 4)),
    "blobs": BlobPartitioner(counts=(7, 3)),
    "subsets": SubsetPartitioner(hidden=0.75),
    "shuffled squares": ShuffledPartitioner(base=SquarePartitioner(sides=(2, 4))),
    "shuffled blobs": ShuffledPartitioner(base=BlobPartitioner(counts=(7, 3))),
}
RANDOM = {name: part for name, part in ALL.items() if name not in ("tokens", "squares")}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- what all partitioners have in common -----------------------------------------------------------------------------


@pytest.mark.parametrize("partitioner", ALL.values(), ids=ALL)
def test_ids_are_nested_within_their_counts_and_as_large_as_the_step_sizes_say(partitioner):
    assert isinstance(partitioner, SegmentPartitioner)
    segments = partitioner(blank(3), Grid(4, 8), generator=seeded(0))
    segments.check()
    for ids, count in zip(segments.levels, segments.counts, strict=True):
        assert ids.shape == (3, 32)
        assert ids.dtype == torch.int64
        assert ids.max() < count
    if segments.step_sizes is not None:
        for ids in segments.levels[0]:
            assert torch.bincount(ids, minlength=segments.counts[0]).tolist() == list(segments.step_sizes)


@pytest.mark.parametrize("partitioner", RANDOM.values(), ids=RANDOM)
def test_draws_repeat_with_the_seed_and_differ_between_seeds_and_images(partitioner):
    first, again, other = (partitioner(blank(4), Grid(8, 8), generator=seeded(seed)).levels for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert len({tuple(ids) for ids in first[0].tolist()}) == 4


@pytest.mark.parametrize("partitioner", RANDOM.values(), ids=RANDOM)
def test_draws_leave_the_global_generator_alone(partitioner):
    before = torch.get_rng_state()
    partitioner(blank(2), Grid(8, 8), generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("partitioner", RANDOM.values(), ids=RANDOM)
def test_a_generator_on_another_device_is_refused(partitioner, generator):
    with pytest.raises(ValueError, match="generator is on cpu, but the draw is made on meta"):
        partitioner(blank(2, "meta"), Grid(8, 8), generator=generator)


@pytest.mark.parametrize("partitioner", ALL.values(), ids=ALL)
def test_ids_live_on_the_device_asked_for(partitioner):
    segments = partitioner(blank(2, "meta"), Grid(8, 8))
    assert {ids.device.type for ids in segments.levels} == {"meta"}


# --- tokens and squares -----------------------------------------------------------------------------------------------


@given(grids, batches)
def test_token_ids_are_raster_positions(grid, batch):
    segments = TokenPartitioner()(blank(batch), grid)
    assert segments.levels[0].tolist() == [list(range(grid.num_tokens))] * batch
    assert segments.counts == (grid.num_tokens,)
    assert segments.step_sizes == (1,) * grid.num_tokens


@given(st.data(), batches)
def test_square_ids_equal_those_by_loop_at_any_depth(data, batch):
    sides = [data.draw(st.integers(1, 3))]
    for _ in range(data.draw(st.integers(0, 2))):
        sides.append(sides[-1] * data.draw(st.integers(2, 3)))
    grid = Grid(sides[-1] * data.draw(st.integers(1, 2)), sides[-1] * data.draw(st.integers(1, 2)))
    segments = SquarePartitioner(sides=sides)(blank(batch), grid)
    segments.check()
    for ids, side, count in zip(segments.levels, sides, segments.counts, strict=True):
        assert ids.tolist() == [square_ids(grid.height, grid.width, side)] * batch
        assert count == (grid.height // side) * (grid.width // side)
    assert segments.step_sizes == (sides[0] ** 2,) * segments.counts[0]


def test_the_papers_16_to_4_is_squares_of_2_in_squares_of_4_on_8x8_and_of_3_in_6_on_12x12():
    assert SquarePartitioner(sides=(2, 4))(blank(1), Grid(8, 8)).counts == (16, 4)
    assert SquarePartitioner(sides=(3, 6))(blank(1), Grid(12, 12)).counts == (16, 4)


# --- blobs ------------------------------------------------------------------------------------------------------------


@given(grids, batches, st.integers(1, 7), st.integers(0, 1000))
def test_blob_ids_equal_nearest_gaussian_by_loop(grid, batch, count, seed):
    points = token_points(grid.height, grid.width)
    means = torch.rand(batch, count, 2, generator=seeded(seed)) * 4 - 2
    stds = torch.rand(batch, count, 2, generator=seeded(seed + 1)) + 0.5
    ids = nearest_gaussian(torch.tensor(points).expand(batch, -1, -1), means, stds)
    for b in range(batch):
        assert ids[b].tolist() == nearest_gaussians(points, means[b].tolist(), stds[b].tolist())


@given(st.data(), grids, batches, st.integers(0, 1000))
def test_blob_levels_group_whole_segments_by_the_gaussian_nearest_to_their_means(data, grid, batch, seed):
    counts = sorted(data.draw(st.sets(st.integers(1, 12), min_size=1, max_size=3)), reverse=True)
    drawn = []

    def spy(points, means, stds):
        drawn.append((points, means, stds))
        return nearest_gaussian(points, means, stds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl_blocks.parts.partition, "nearest_gaussian", spy)
        segments = BlobPartitioner(counts=counts, mean_range=(-1.0, 1.5), std_range=(0.3, 0.4))(
            blank(batch), grid, generator=seeded(seed)
        )
    segments.check()
    assert segments.counts == tuple(counts)
    assert segments.step_sizes is None
    assert all(means.min() >= -1 and means.max() <= 1.5 for _, means, _ in drawn)
    assert all(stds.min() >= 0.3 and stds.max() <= 0.4 for _, _, stds in drawn)
    for b in range(batch):
        assert torch.allclose(drawn[0][0][b], torch.tensor(token_points(grid.height, grid.width)), atol=1e-6)
        points, ids = drawn[0][0][b].tolist(), None
        for level, (_, means, stds) in enumerate(drawn):
            group = nearest_gaussians(points, means[b].tolist(), stds[b].tolist())
            ids = group if ids is None else [group[k] for k in ids]
            assert segments.levels[level][b].tolist() == ids
            points = means[b].tolist()


def test_first_token_lies_at_minus_two_and_last_at_two(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ssl_blocks.parts.partition, "nearest_gaussian", lambda p, m, s: seen.append(p) or nearest_gaussian(p, m, s)
    )
    BlobPartitioner(counts=(2,))(blank(1), Grid(3, 5))
    assert seen[0][0, [0, 1, 5, -1]].tolist() == [[-2, -2], [-2, -1], [0, -2], [2, 2]]  # (row, column)


def test_a_wider_gaussian_takes_more_tokens():
    points = torch.tensor(token_points(5, 5))[None]
    means = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])
    narrow, wide = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]), torch.tensor([[[1.0, 1.0], [2.0, 2.0]]])
    assert (nearest_gaussian(points, means, narrow) == 1).sum() == 10
    assert (nearest_gaussian(points, means, wide) == 1).sum() > 15


def test_means_and_deviations_are_uniform_in_their_ranges(monkeypatch, generator):
    seen = []
    monkeypatch.setattr(
        ssl_blocks.parts.partition, "nearest_gaussian", lambda p, m, s: seen.append((m, s)) or nearest_gaussian(p, m, s)
    )
    BlobPartitioner(counts=(4,))(blank(1000), Grid(1, 1), generator=generator)
    means, stds = seen[0]
    for values, low, high in ((means, -2.0, 2.0), (stds, 0.5, 1.5)):
        for axis in range(2):
            assert chisquare(torch.histc(values[..., axis], 8, low, high).numpy()).pvalue > 1e-3


def test_seven_blobs_are_all_present_in_about_nine_of_ten_draws(generator):
    ids = BlobPartitioner(counts=(7,))(blank(2000), Grid(8, 8), generator=generator).levels[0]
    full = torch.nn.functional.one_hot(ids, 7).any(1).all(1).float().mean()
    assert 0.8 < full < 0.97


# --- subsets ----------------------------------------------------------------------------------------------------------


@given(st.data(), grids, batches, st.integers(0, 1000))
def test_subset_ids_equal_those_by_loop(data, grid, batch, seed):
    n = grid.num_tokens
    parts = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    hidden = tuple(part / sum(parts) for part in parts[1:])
    sizes = [int(n * (1 - sum(hidden))), *(int(n * share) for share in hidden[:-1])]
    sizes.append(n - sum(sizes))
    partitioner = SubsetPartitioner(hidden=hidden)
    if min(sizes) < 1:
        with pytest.raises(ValueError, match="must leave every subset a token"):
            partitioner(blank(batch), grid)
        return
    segments = partitioner(blank(batch), grid, generator=seeded(seed))
    ranks = random_ranks(batch, n, generator=seeded(seed), device="cpu")
    assert segments.levels[0].tolist() == [subset_ids(row, sizes) for row in ranks.tolist()]
    assert segments.step_sizes == tuple(sizes)
    assert segments.counts == (len(sizes),)


def test_squares_are_hidden_as_a_whole(generator):
    segments = SubsetPartitioner(hidden=0.75, side=2)(blank(3), Grid(4, 8), generator=generator)
    segments.check()
    squares = segments.levels[0].reshape(3, 2, 2, 4, 2)  # rows of squares, rows in them, likewise columns
    assert torch.equal(squares.amin((2, 4)), squares.amax((2, 4)))
    assert segments.step_sizes == (8, 24)
    assert len({tuple(ids) for ids in segments.levels[0].tolist()}) == 3


def test_every_token_is_equally_likely_to_be_kept(generator):
    ids = SubsetPartitioner(hidden=0.75)(blank(4000), Grid(2, 4), generator=generator).levels[0]
    assert chisquare((ids == 0).sum(0).numpy()).pvalue > 1e-3


# --- shuffling --------------------------------------------------------------------------------------------------------


@given(batches, st.integers(0, 1000))
def test_shuffling_keeps_sizes_and_nesting(batch, seed):
    for base in (SquarePartitioner(sides=(2, 4)), BlobPartitioner(counts=(5, 3, 2))):
        grid = Grid(4, 8)
        plain = base(blank(batch), grid, generator=seeded(seed))
        shuffled = ShuffledPartitioner(base=base)(blank(batch), grid, generator=seeded(seed))
        shuffled.check()
        assert (shuffled.counts, shuffled.step_sizes) == (plain.counts, plain.step_sizes)
        for b in range(batch):
            before, after = (sorted(zip(*(i[b].tolist() for i in s.levels), strict=True)) for s in (plain, shuffled))
            assert before == after


def test_shuffling_scatters_every_token_uniformly(generator):
    ids = ShuffledPartitioner(base=SquarePartitioner(sides=(2,)))(blank(4000), Grid(4, 4), generator=generator).levels[
        0
    ]
    for position in (0, 5, 15):
        assert chisquare(torch.bincount(ids[:, position], minlength=4).numpy()).pvalue > 1e-3
    together = (ids[:, 0] == ids[:, 1]).float().mean()  # neighbours share a square no more often than chance: 3 of 15
    assert abs(together - 0.2) < 0.03


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SquarePartitioner(sides=()), "sides=() must name at least one side of at least 1 token"),
        (
            lambda: SquarePartitioner(sides=(0, 2)),
            "sides=(0, 2) must be several values, each at least 1",
        ),
        (
            lambda: SquarePartitioner(sides=(2, 3)),
            "sides=(2, 3) must grow from level to level, each a multiple of the one before "
            "(3 is not a larger multiple of 2)",
        ),
        (lambda: SquarePartitioner(sides=(2, 2)), "sides=(2, 2) must grow from level to level"),
        (lambda: SquarePartitioner(sides=(4, 2)), "(2 is not a larger multiple of 4)"),
        (
            lambda: SquarePartitioner(sides=(2, 4))(blank(1), Grid(6, 8)),
            "sides=(2, 4) must divide the grid 6x8 (height 6 is not a multiple of 4)",
        ),
        (
            lambda: SquarePartitioner(sides=(3,))(blank(1), Grid(9, 8)),
            "sides=(3,) must divide the grid 9x8 (width 8 is not a multiple of 3)",
        ),
        (lambda: BlobPartitioner(counts=()), "counts=() must name at least one number of segments of at least 1"),
        (
            lambda: BlobPartitioner(counts=(3, 0)),
            "counts=(3, 0) must be several values, each at least 1",
        ),
        (
            lambda: BlobPartitioner(counts=(3, 7)),
            "counts=(3, 7) must fall from level to level, finest first (7 is not below 3)",
        ),
        (lambda: BlobPartitioner(counts=(3, 3)), "(3 is not below 3)"),
        (lambda: BlobPartitioner(counts=(3,), mean_range=(2.0, -2.0)), "mean_range=(2.0, -2.0) must be (lowest, high"),
        (
            lambda: BlobPartitioner(counts=(3,), std_range=(0.0, 1.0)),
            "std_range=(0.0, 1.0) must be (lowest, highest), both above 0",
        ),
        (lambda: BlobPartitioner(counts=(3,), std_range=(2.0, 1.0)), "std_range=(2.0, 1.0) must be (lowest, highest)"),
        (
            lambda: SubsetPartitioner(hidden=(0.5, 0.6)),
            "hidden=(0.5, 0.6) must be one or more shares above 0 that add up to less than 1",
        ),
        (lambda: SubsetPartitioner(hidden=()), "hidden=() must be one or more shares above 0"),
        (lambda: SubsetPartitioner(hidden=1.0), "hidden=1.0 must be one or more shares above 0"),
        (lambda: SubsetPartitioner(hidden=(0.0, 0.5)), "hidden=(0.0, 0.5) must be one or more shares above 0"),
        (
            lambda: SubsetPartitioner(hidden=0.5, side=2)(blank(1), Grid(3, 4)),
            "sides=(2,) must divide the grid 3x4",
        ),
        (
            lambda: SubsetPartitioner(hidden=0.9)(blank(1), Grid(3, 3)),
            "hidden=(0.9,) must leave every subset a token, but gives sizes (0, 9) on a 3x3 grid",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
