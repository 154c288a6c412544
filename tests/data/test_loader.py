"""Every image once an epoch, whoever loads it, from wherever the run stands."""

import os
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image

from ssl_blocks.data import (
    FileSplit,
    ImageSplit,
    RandomResizedCropFlip,
    RunSampler,
    UnreadableImageError,
    load,
    share_of_cores,
    train_loader,
)


def places(**options: int) -> list[list[tuple[int, int, int]]]:
    return [[tuple(place) for place in batch] for batch in RunSampler(22, 8, seed=3, epochs=3, **options)]


def test_an_epoch_holds_every_image_at_most_once_in_an_order_of_its_own() -> None:
    batches = places()
    assert [len(batch) for batch in batches] == [8] * 6
    epochs = [[*batches[i], *batches[i + 1]] for i in (0, 2, 4)]
    images = [[image for image, _, _ in epoch] for epoch in epochs]
    assert all(len(set(epoch)) == 16 for epoch in images)
    assert images[0] != images[1] != images[2]
    assert set(images[0]) | set(images[1]) | set(images[2]) == set(range(22))  # others are left out every time
    assert [place[1:] for place in epochs[1]] == [(1, slot) for slot in range(16)]


def test_the_order_follows_the_seed_alone() -> None:
    assert places() == places()
    assert next(iter(RunSampler(22, 8, seed=4))) != next(iter(RunSampler(22, 8, seed=3)))
    first = [place.image for batch in RunSampler(6, 6, seed=0, epochs=400) for place in batch[:1]]
    counts = torch.tensor(first).bincount(minlength=6)
    assert ((counts - 400 / 6).square() / (400 / 6)).sum() < 20.5  # chi-square, 5 degrees of freedom, p = .001


def test_a_run_goes_on_where_it_stood() -> None:
    for step in range(7):
        assert places(first_step=step) == places()[step:]
        assert places(first_step=step, accumulate=2) == places(accumulate=2)[2 * step :]


def test_processes_and_parts_together_make_the_step_of_one() -> None:
    shares = [places(world_size=2, rank=rank, accumulate=2) for rank in (0, 1)]
    for step, whole in enumerate(places()):
        parts = [shares[rank][2 * step + part] for part in (0, 1) for rank in (0, 1)]
        assert list(chain(*parts)) == whole
    assert len(RunSampler(22, 8, seed=0, epochs=3, first_step=4, accumulate=2)) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"rank": 2, "world_size": 2}, "rank=2 must be below world_size=2"),
        ({"batch_size": 23}, r"batch_size=23 must not exceed the data \(22 images\)"),
        ({"batch_size": 6, "world_size": 2, "accumulate": 2}, "batch_size=6 must be a multiple of .* = 2 x 2"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunSampler(**({"num_images": 22, "batch_size": 8, "seed": 0} | options))


def test_images_in_memory_come_as_they_are() -> None:
    images = torch.randint(0, 256, (22, 3, 4, 4), dtype=torch.uint8)
    loader = train_loader(
        ImageSplit(images, None), batch_size=8, seed=3, epochs=2, crop=RandomResizedCropFlip(4), first_step=1
    )
    expected = [images[[place.image for place in batch]] for batch in RunSampler(22, 8, seed=3, epochs=2, first_step=1)]
    assert all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in two classes, each of its own brightness."""
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        noise = torch.randint(0, 20, (24, 30, 3), generator=generator, dtype=torch.uint8) + 20 * i
        Image.fromarray(noise.numpy()).save(root / "ab"[i % 2] / f"{i:02}.png")
    return root


def streamed(folder: Path, **options):
    return load(f"imagefolder:{folder}", image_size=8, storage="stream", **options)


def run(folder: Path, **options) -> list[torch.Tensor]:
    split = streamed(folder).train
    options = {"seed": 1, "epochs": 3, "batch_size": 4, "workers": 0, "crop": RandomResizedCropFlip(8)} | options
    return list(train_loader(split, **options))


def test_streamed_images_are_augmented_anew_every_epoch(folder: Path) -> None:
    split = streamed(folder).train
    assert isinstance(split, FileSplit)
    batches = run(folder)
    assert all(batch.shape == (4, 3, 8, 8) and batch.dtype == torch.uint8 for batch in batches)
    seen: dict[int, list[torch.Tensor]] = {}
    for batch, chosen in zip(batches, RunSampler(len(split), 4, seed=1, epochs=3), strict=True):
        for crop, place in zip(batch, chosen, strict=True):
            seen.setdefault(place.image, []).append(crop)
            brightness = split.read(torch.tensor([place.image])).float().mean()
            assert (crop.float().mean() - brightness).abs() < 5  # it is that very image
    for crops in seen.values():
        assert all(not torch.equal(crops[0], other) for other in crops[1:])


def test_crops_do_not_depend_on_workers_processes_parts_or_interruptions(folder: Path) -> None:
    whole = run(folder)
    later = run(folder, first_step=3, workers=2)
    assert all(torch.equal(a, b) for a, b in zip(later, whole[3:], strict=True))
    shares = [run(folder, world_size=2, rank=rank, accumulate=2, workers=2 * rank) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        parts = [shares[rank][2 * step + part] for part in (0, 1) for rank in (0, 1)]
        assert torch.equal(torch.cat(parts), batch)


def test_boxes_of_single_images_follow_the_distribution_of_batches() -> None:
    crop, generator = RandomResizedCropFlip(8), torch.Generator().manual_seed(0)
    boxes = [crop.draw_box(40, 60, generator=generator) for _ in range(2000)]
    ones = torch.tensor([[float(box.top), box.left, box.height, box.width] for box in boxes])
    many = crop._draw_boxes(2000, 40, 60, generator, torch.device("cpu"))
    torch.testing.assert_close(ones.mean(0), many.mean(0), rtol=0.06, atol=0.6)
    torch.testing.assert_close(ones.std(0), many.std(0), rtol=0.06, atol=0.6)
    assert 0.45 < sum(box.mirror for box in boxes) / 2000 < 0.55
    assert not any(RandomResizedCropFlip(8, flip=False).draw_box(9, 9, generator=generator).mirror for _ in range(20))


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "a" / "04.png").write_bytes(b"no image")
    return tmp_path / "copy"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_met_while_training_is_one_line(workers: int, folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    split = streamed(tmp_path / "copy").train
    (tmp_path / "copy" / "a" / "04.png").write_bytes(b"no image")  # after the start
    loader = train_loader(split, batch_size=4, seed=1, epochs=9, crop=RandomResizedCropFlip(8), workers=workers)
    with pytest.raises(UnreadableImageError) as error:
        list(loader)
    assert "\n" not in str(error.value)
    assert "a/04.png must be a readable image: no known image format" in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_file_is_replaced_by_the_next_and_remembered(workers: int, damaged: Path) -> None:
    data = streamed(damaged, corrupt="skip")
    data.train.unreadable.zero_()  # as if it had been damaged after the start
    options = {"batch_size": 4, "seed": 1, "epochs": 3, "crop": RandomResizedCropFlip(8)}
    batches = list(train_loader(data.train, workers=workers, **options))
    assert len(batches) == 3 * (len(data.train) // 4)
    assert [path.name for path in data.skipped] == ["04.png"]
    again = list(train_loader(streamed(damaged, corrupt="skip").train, workers=0, **options))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_in_memory_an_unreadable_file_is_an_error_or_left_out_with_its_label(damaged: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"04.png must be a readable image"):
        load(f"imagefolder:{damaged}", image_size=8)
    data = load(f"imagefolder:{damaged}", image_size=8, corrupt="skip")
    everything = load(f"imagefolder:{damaged.parent / 'copy'}", image_size=8, corrupt="skip")
    assert len(data.train) + len(data.test) == 11
    assert [path.name for path in data.skipped] == ["04.png"]
    for split in (data.train, data.test):
        order = (split.images.float().mean((1, 2, 3)) / 20).floor().long()  # a picture's brightness is its number
        assert torch.equal(order % 2, split.labels)
    assert torch.equal(everything.train.images, data.train.images)


def test_a_sample_of_streamed_images_keeps_labels_and_images_together(damaged: Path) -> None:
    data = streamed(damaged, corrupt="skip").sample()
    assert len(data.train) + len(data.test) == 11
    for split in (data.train, data.test):
        number = (split.images.float().mean((1, 2, 3)) / 20).floor().long()
        assert torch.equal(number % 2, split.labels)


def test_where_nothing_can_be_read_skipping_is_an_error(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    for storage in ("memory", "stream"):
        with pytest.raises(UnreadableImageError, match="corrupt='skip' must leave at least one image"):
            load(f"imagefolder:{tmp_path}", image_size=8, storage=storage, corrupt="skip")


def test_auto_streams_what_does_not_fit_and_both_ways_see_the_same(folder: Path) -> None:
    inside = load(f"imagefolder:{folder}", image_size=8)
    outside = load(f"imagefolder:{folder}", image_size=8, max_bytes=1000)
    assert (inside.is_streamed, outside.is_streamed) == (False, True)
    assert outside.shape == inside.shape
    assert outside.mean == inside.mean
    assert torch.equal(outside.sample().train.images, inside.train.images)
    assert torch.equal(outside.sample().train.labels, inside.train.labels)
    few = outside.sample(4, 1)
    assert few.train.labels.bincount().tolist() == [2, 2]
    assert (len(few.test), few.is_streamed) == (1, False)
    with pytest.raises(ValueError, match="storage='stream' needs image_size"):
        load(f"imagefolder:{folder}", storage="stream")


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert [share_of_cores(n) for n in (1, 2, 8, 16, 40)] == [16, 8, 2, 1, 1]


@pytest.mark.parametrize("kind", ["shards", "stream"])
@pytest.mark.parametrize("first", [0, 2])
def test_two_processes_load_what_one_does_and_go_on_in_mid_epoch(
    kind: str, first: int, divided: Path, tmp_path: Path
) -> None:
    from tests.data import test_archives, test_streams, two_processes

    test_archives.shards(tmp_path)
    data = (
        f"shards:{tmp_path}/train-*.tar"
        if kind == "shards"
        else test_streams.StreamImages(test_streams.Pairs(), count=22)
    )
    split = load(data, image_size=(6, 8), storage="stream", root=tmp_path).train
    whole = list(two_processes.loader(split, workers=0))
    shares = [torch.load(divided / "data" / f"{kind}-{first}-{rank}.pt") for rank in (0, 1)]
    assert len(whole) - first == len(shares[0]) == len(shares[1])
    for batch, *parts in zip(whole[first:], *shares, strict=True):
        assert torch.equal(torch.cat(parts), batch)
