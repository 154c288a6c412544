import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import chisquare

from ssl_blocks import (
    BlobPartitioner,
    Grid,
    OrderedSerializer,
    RandomSerializer,
    Segments,
    SquarePartitioner,
    SubsetPartitioner,
    TokenPartitioner,
)
from ssl_blocks.parts import Serializer
from tests.recipes import blank
from tests.reference import check_reading, hierarchies, ordered_reading

SERIALIZERS = [OrderedSerializer(), RandomSerializer()]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def segments_of(hierarchy) -> Segments:
    levels, counts = hierarchy
    return Segments(levels=tuple(torch.tensor(level) for level in levels), counts=tuple(counts))


def check_all_images(segments: Segments, reading) -> None:
    assert reading.order.shape == reading.step.shape == segments.levels[0].shape
    for b, (order, step) in enumerate(zip(reading.order.tolist(), reading.step.tolist(), strict=True)):
        check_reading([ids[b].tolist() for ids in segments.levels], order, step)


def first_ids(segments: Segments, reading, level: int) -> torch.Tensor:
    """The segment of ``level`` that each image reads first."""
    return reading.take(segments.levels[level])[:, 0]


@pytest.mark.parametrize(
    ("levels", "order", "step"),
    [
        ([[0, 0, 1]], [0, 0, 1], [0, 0, 1]),  # not a permutation
        ([[0, 0, 1]], [0, 1, 2], [1, 1, 2]),  # not from 0
        ([[0, 0, 1]], [0, 1, 2], [0, 0, 2]),  # a gap
        ([[0, 0, 1]], [0, 1, 2], [0, 1, 2]),  # a segment in two steps
        ([[0, 0, 1]], [0, 1, 2], [0, 0, 0]),  # two segments in a step
        ([[0, 1, 2], [0, 1, 0]], [0, 1, 2], [0, 1, 2]),  # a partition in two pieces
    ],
)
def test_the_reference_refuses_illegal_readings(levels, order, step):
    with pytest.raises(AssertionError):
        check_reading(levels, order, step)


@given(hierarchies(), st.integers(0, 1000))
def test_random_readings_are_legal_at_any_depth(hierarchy, seed):
    segments = segments_of(hierarchy)
    check_all_images(segments, RandomSerializer()(segments, generator=seeded(seed)))


@given(hierarchies())
def test_ordered_readings_equal_sorting_by_loop(hierarchy):
    segments = segments_of(hierarchy)
    reading = OrderedSerializer()(segments)
    check_all_images(segments, reading)
    for b in range(reading.order.shape[0]):
        order, step = ordered_reading([ids[b].tolist() for ids in segments.levels])
        assert reading.order[b].tolist() == order
        assert reading.step[b].tolist() == step


@given(hierarchies(), st.integers(0, 1000))
def test_step_sizes_of_equal_segments_are_those_of_every_image(hierarchy, seed):
    segments = segments_of(hierarchy)
    for serializer in SERIALIZERS:
        assert serializer(segments, generator=seeded(seed)).step_sizes is None  # not claimed, so not invented
    squares = SquarePartitioner(sides=(2, 4))(blank(2), Grid(4, 8))
    for serializer in SERIALIZERS:
        reading = serializer(squares, generator=seeded(seed))
        assert reading.step_sizes == (4,) * 8
        assert [torch.bincount(step).tolist() for step in reading.step] == [[4] * 8] * 2


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_real_partitions_are_read_legally(serializer, generator):
    assert isinstance(serializer, Serializer)
    for partitioner in (
        TokenPartitioner(),
        SquarePartitioner(sides=(1, 2, 4)),
        BlobPartitioner(counts=(7, 3)),
        BlobPartitioner(counts=(16, 4, 2)),
        SubsetPartitioner(hidden=(0.3, 0.5)),
    ):
        segments = partitioner(blank(3), Grid(4, 8), generator=generator)
        check_all_images(segments, serializer(segments, generator=generator))


def test_tokens_in_order_are_raster_order():
    reading = OrderedSerializer()(TokenPartitioner()(blank(2), Grid(2, 3)))
    assert reading.order.tolist() == reading.step.tolist() == [list(range(6))] * 2


def test_ordered_subsets_read_the_visible_ones_first_with_uneven_step_sizes(generator):
    segments = SubsetPartitioner(hidden=0.75)(blank(3), Grid(8, 8), generator=generator)
    reading = OrderedSerializer()(segments)
    assert reading.step_sizes == (16, 48)
    assert reading.windows() == (slice(0, 16), slice(16, 64))
    assert (reading.take(segments.levels[0], slice(0, 16)) == 0).all()


def test_random_order_of_uneven_subsets_has_no_step_sizes_for_they_differ_between_images(generator):
    segments = SubsetPartitioner(hidden=0.75)(blank(20), Grid(4, 4), generator=generator)
    reading = RandomSerializer()(segments, generator=generator)
    assert reading.step_sizes is None
    assert {(step == 0).sum().item() for step in reading.step} == {4, 12}


def test_a_hierarchy_has_no_step_sizes_unless_segments_are_equal():
    # finest by id: sizes 1, 3, 2; read partition by partition: 0, 2, 1
    levels = (torch.tensor([[0, 1, 1, 1, 2, 2]]), torch.tensor([[0, 1, 1, 1, 0, 0]]))
    reading = OrderedSerializer()(Segments(levels=levels, counts=(3, 2), step_sizes=(1, 3, 2)))
    assert reading.step.tolist() == [[0, 1, 1, 2, 2, 2]]
    assert reading.step_sizes is None


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_empty_segments_have_no_step_size(serializer):
    ids = torch.tensor([[0, 3, 0, 3], [3, 3, 0, 0]])
    segments = Segments(levels=(ids,), counts=(5,), step_sizes=(2, 0, 0, 2, 0))
    reading = serializer(segments)
    assert reading.step.tolist() == [[0, 0, 1, 1]] * 2
    assert reading.step_sizes == (2, 2)
    assert reading.windows() == (slice(0, 2), slice(2, 4))


def test_random_orders_repeat_with_the_seed_and_differ_between_seeds_and_images():
    segments = SquarePartitioner(sides=(2, 4))(blank(6), Grid(8, 8))
    first, again, other = (RandomSerializer()(segments, generator=seeded(seed)).order for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(order) for order in first.tolist()}) == 6


def test_random_serializer_leaves_the_global_generator_alone(generator):
    before = torch.get_rng_state()
    RandomSerializer()(SquarePartitioner(sides=(2,))(blank(2), Grid(4, 4)), generator=generator)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_order_of_three_segments_is_equally_likely(generator):
    ids = torch.tensor([[0, 1, 1, 2]]).expand(6000, -1)
    reading = RandomSerializer()(Segments(levels=(ids,), counts=(3,)), generator=generator)
    order = torch.zeros(6000, 3, dtype=torch.long).scatter(1, reading.step, reading.take(ids))
    seen = torch.bincount(order @ torch.tensor([9, 3, 1]))
    assert (seen > 0).sum() == 6
    assert chisquare(seen[seen > 0].numpy()).pvalue > 1e-3


def test_the_first_segment_and_the_first_partition_are_uniform(generator):
    segments = SquarePartitioner(sides=(1, 2))(blank(8000), Grid(4, 4))
    reading = RandomSerializer()(segments, generator=generator)
    for level, count in enumerate(segments.counts):
        seen = torch.bincount(first_ids(segments, reading, level), minlength=count)
        assert chisquare(seen.numpy()).pvalue > 1e-3


def test_the_first_segment_is_uniform_among_those_that_are_not_empty(generator):
    ids = torch.tensor([[1, 1, 4, 6]]).expand(6000, -1)
    segments = Segments(levels=(ids,), counts=(9,))
    seen = torch.bincount(first_ids(segments, RandomSerializer()(segments, generator=generator), 0))
    assert seen.nonzero().flatten().tolist() == [1, 4, 6]
    assert chisquare(seen[seen > 0].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_levels_that_are_not_nested_are_refused(serializer):
    levels = (torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 1]]))
    with pytest.raises(ValueError, match="levels must be nested: a segment of level 0 lies in two of level 1"):
        serializer(Segments(levels=levels, counts=(2, 2)))


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_ids_out_of_range_are_refused(serializer):
    with pytest.raises(ValueError, match=r"ids of level 0 must lie in \[0, 2\), got 0\.\.2"):
        serializer(Segments(levels=(torch.tensor([[0, 1, 2]]),), counts=(2,)))


def test_a_generator_on_another_device_is_refused(generator):
    segments = SquarePartitioner(sides=(2,))(blank(1, "meta"), Grid(4, 4))
    with pytest.raises(ValueError, match="generator is on cpu, but the draw is made on meta"):
        RandomSerializer()(segments, generator=generator)
