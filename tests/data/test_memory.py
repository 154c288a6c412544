from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_blocks.data import EpochBatches


def numbered(count: int) -> Tensor:
    """Images that hold their own number."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)


def numbers(batch: Tensor) -> list[int]:
    return batch[:, 0, 0, 0].tolist()


def epoch_of(batches: EpochBatches, epoch: int = 0) -> list[list[int]]:
    batches.set_epoch(epoch)
    return [numbers(batches[i]) for i in range(len(batches))]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_together_see_what_one_process_sees(world_size: int, drop_last: bool) -> None:
    images = numbered(53)
    alone = epoch_of(EpochBatches(images, 4 * world_size, seed=7, drop_last=drop_last), 3)
    ranks = [
        epoch_of(EpochBatches(images, 4, seed=7, rank=r, world_size=world_size, drop_last=drop_last), 3)
        for r in range(world_size)
    ]
    together = [[number for part in parts for number in part] for parts in zip(*ranks, strict=True)]
    assert together == alone


def test_an_epoch_shows_every_image_once() -> None:
    shown = epoch_of(EpochBatches(numbered(20), 5, seed=0))
    assert [len(batch) for batch in shown] == [5] * 4
    assert sorted(chain(*shown)) == list(range(20))


def test_rest_is_dropped_or_kept() -> None:
    assert [len(batch) for batch in epoch_of(EpochBatches(numbered(11), 4, seed=0))] == [4, 4]
    kept = epoch_of(EpochBatches(numbered(11), 4, seed=0, drop_last=False))
    assert [len(batch) for batch in kept] == [4, 4, 3]
    assert sorted(chain(*kept)) == list(range(11))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    images = numbered(64)
    batches = EpochBatches(images, 8, seed=0)
    first = epoch_of(batches, 0)
    orders = [epoch_of(batches, 1), epoch_of(EpochBatches(images, 8, seed=1), 0), list(range(64)), first]
    assert len({str(order) for order in orders}) == 4
    before = torch.get_rng_state()
    assert epoch_of(batches, 0) == first
    assert epoch_of(EpochBatches(images, 8, seed=0), 0) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_epoch_0_is_set_from_the_start() -> None:
    batches = EpochBatches(numbered(16), 4, seed=0)
    assert [numbers(batch) for batch in DataLoader(batches, batch_size=None)] == epoch_of(batches, 0)


def test_indices_end_where_the_epoch_ends() -> None:
    batches = EpochBatches(numbered(16), 4, seed=0)
    assert torch.equal(batches[-1], batches[3])
    with pytest.raises(IndexError):
        batches[4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"batch_size": 11}, r"batch_size=11 times world_size=1 must not exceed the data \(10 images\)"),
        ({"batch_size": 6, "world_size": 2}, "batch_size=6 times world_size=2 must not exceed"),
        ({"batch_size": 2, "world_size": 0}, "world_size=0 must be at least 1"),
        ({"batch_size": 2, "rank": 2, "world_size": 2}, "rank=2 must be at least 0 and below world_size=2"),
        ({"batch_size": 2, "seed": -1}, "seed=-1 must be at least 0"),
        (
            {"batch_size": 3, "world_size": 3, "drop_last": False},
            "drop_last=False must .* has 1 for world_size=3",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochBatches(numbered(10), **{"seed": 0, **arguments})


def test_wrong_epoch() -> None:
    with pytest.raises(ValueError, match="epoch=-1 must be at least 0"):
        EpochBatches(numbered(10), 2, seed=0).set_epoch(-1)
