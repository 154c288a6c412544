"""Images without an index: in memory or streamed, every image once an epoch, whoever reads it from wherever."""

import io
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from ssl_blocks.data import (
    FileSplit,
    ImageSplit,
    RandomResizedCropFlip,
    StreamImages,
    UnreadableImageError,
    load,
    loader,
    train_loader,
)
from ssl_blocks.data.sources import find_shape

PIXELS = np.random.default_rng(0).integers(0, 256, (22, 6, 8, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(22)]
IMAGES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
WHOLE = RandomResizedCropFlip((6, 8), scale=(1.0, 1.0), ratio=(8 / 6, 8 / 6), flip=False)


class Pairs(IterableDataset):
    """Pictures and labels one after the other, of unknown number."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(Image.fromarray(pixels), label) for pixels, label in zip(PIXELS, LABELS, strict=True)])


class Shuffled(Pairs):
    """In an order of the epoch, which is told."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return iter([list(super(Shuffled, self).__iter__())[(i + 5 * self.epoch) % 22] for i in range(22)])


class Counted(Pairs):
    def __len__(self) -> int:
        return 22


def encoded() -> Iterator[dict[str, Any]]:
    for pixels, label in zip(PIXELS, LABELS, strict=True):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "png")
        yield {"label": label, "image": stream.getvalue()}


def names(images: torch.Tensor) -> list[int]:
    """Which images these are."""
    return [int((image == IMAGES).flatten(1).all(1).nonzero()) for image in images]


@pytest.mark.parametrize("stream", [Pairs(), encoded, Counted(), StreamImages(Pairs(), count=22)])
def test_what_fits_is_held_in_memory_with_its_labels(stream: Any) -> None:
    data = load(stream)
    assert isinstance(data.train, ImageSplit)
    assert data.test is not None
    seen = {}
    for split in (data.train, data.test):
        assert split.labels is not None
        seen |= dict(zip(names(split.read(torch.arange(len(split)))), split.labels.tolist(), strict=True))
    assert seen == dict(enumerate(LABELS))
    assert data.remarks == ("found 22 images in 3 classes",)
    assert find_shape(stream) == (3, 6, 8)


def streamed(stream: Any = None, **options: Any) -> FileSplit:
    given = {"image_size": (6, 8), "storage": "stream"} | options
    data = load(StreamImages(Pairs(), count=22) if stream is None else stream, **given)
    assert isinstance(data.train, FileSplit)
    assert data.train.labels is None
    return data.train


def batches(split: FileSplit | None = None, **options: Any) -> list[torch.Tensor]:
    given = {"seed": 3, "epochs": 3, "batch_size": 8, "workers": 1, "crop": WHOLE} | options
    return list(train_loader(streamed() if split is None else split, **given))


@pytest.fixture(params=[1000, 5])
def window(request: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(loader, "WINDOW", request.param)
    return int(request.param)


def test_every_image_once_an_epoch_in_an_order_of_its_own(window: int) -> None:
    seen = [names(batch) for batch in batches()]
    epochs = [seen[i] + seen[i + 1] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    if window == 5:
        assert all({*range(5)} == {*epoch[:5]} and {*range(10, 15)} == {*epoch[10:15]} for epoch in epochs)
        assert epochs[0][:5] != [*range(5)]


def test_processes_parts_and_threads_share_it_and_a_run_goes_on_in_mid_epoch(window: int) -> None:
    crop = RandomResizedCropFlip((6, 8))
    whole = batches(crop=crop)
    for step in range(1, 6):
        later = batches(crop=crop, first_step=step, workers=3)
        assert all(torch.equal(a, b) for a, b in zip(later, whole[step:], strict=True))
    shares = [batches(crop=crop, world_size=2, rank=rank, accumulate=2, workers=2) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        parts = [shares[rank][2 * step + part] for part in (0, 1) for rank in (0, 1)]
        assert torch.equal(torch.cat(parts), batch)


def test_a_stream_that_knows_epochs_is_told_them_also_when_a_run_goes_on(window: int) -> None:
    split = streamed(StreamImages(Shuffled(), count=10))
    seen = [names(batch) for batch in batches(split, batch_size=5)]
    assert [set(seen[i] + seen[i + 1]) for i in (0, 2, 4)] == [
        {(i + 5 * epoch) % 22 for i in range(10)} for epoch in range(3)
    ]
    assert [names(batch) for batch in batches(split, batch_size=5, first_step=3)] == seen[3:]


def test_only_a_window_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "WINDOW", 3)
    alive, most = set[int](), 0

    def counting() -> Iterator[Image.Image]:
        nonlocal most
        for i in range(200):
            image = Image.fromarray(PIXELS[i % 22])
            alive.add(i)
            weakref.finalize(image, alive.discard, i)
            most = max(most, len(alive))
            yield image

    split = streamed(StreamImages(counting, count=200))
    most = 0
    assert len(batches(split, batch_size=2, epochs=1, world_size=2, rank=0)) == 100
    assert most <= 3 + 2 * loader.AHEAD  # and not the hundred images that another process takes


def test_streamed_where_memory_does_not_suffice() -> None:
    stream = StreamImages(Pairs(), count=22)
    assert not load(stream, image_size=4, max_bytes=22 * 3 * 16 + 3000 * 22).is_streamed
    assert load(stream, image_size=4, max_bytes=22 * 3 * 16 - 1).is_streamed
    assert len(load(stream, image_size=4, storage="stream", max_train=7).train) == 7
    with pytest.raises(ValueError, match=r"max_bytes=500 .* of the stream, but its first 4 need more: give storage="):
        load(Pairs(), image_size=4, max_bytes=500)


def test_a_stream_beside_images_to_test_on() -> None:
    held_out = [(Image.fromarray(PIXELS[i]), LABELS[i]) for i in range(4)]
    data = load((StreamImages(Pairs(), count=22), held_out), image_size=(6, 8), storage="stream")
    assert data.is_streamed
    assert data.test is not None
    assert data.test.labels is not None
    assert data.test.labels.tolist() == LABELS[:4]
    sample = data.sample(5)
    assert isinstance(sample.train, ImageSplit)
    assert torch.equal(sample.train.images, IMAGES[:5])


def test_unreadable_images_are_an_error_or_skipped() -> None:
    broken = [Image.fromarray(p) for p in PIXELS[:4]] + [b"no image"] + [Image.fromarray(p) for p in PIXELS[5:8]]

    class Broken(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return iter(broken)

    stream = StreamImages(Broken(), count=8)
    with pytest.raises(UnreadableImageError, match="must be a readable image"):
        streamed(stream)
    split = streamed(stream, corrupt="skip")
    split.unreadable.zero_()  # which statistics have met
    seen = [names(batch) for batch in batches(split, batch_size=4, epochs=1)]
    assert {*seen[0], *seen[1]} == {0, 1, 2, 3, 5, 6, 7}
    assert split.skipped == (Path("image 4"),)


def test_code_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_stream.py").write_text(
        "import numpy as np\ndef make():\n    for i in range(6):\n        yield np.full((4, 4), i, np.uint8)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load("my_stream:make").train.images.amax((1, 2, 3)).tolist() == [*range(6)]
    sys.modules.pop("my_stream")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: load(iter([PIXELS[0]])), "stream of type list_iterator must give its images again in every epoch"),
        (lambda: StreamImages(set()), "stream must give at least one image, but is empty"),
        (lambda: StreamImages(Pairs(), count=0), "count=0 must be at least 1"),
        (lambda: streamed(Pairs()), "count=None must say how many images an epoch has"),
        (lambda: batches(streamed(StreamImages(Pairs(), count=23))), "count=23 must be no more images than a pass"),
        (lambda: load(StreamImages(Pairs(), count=22), storage="stream"), "storage='stream' needs image_size"),
    ],
)
def test_what_is_no_stream_is_refused(make: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


def test_a_pass_that_ends_early_in_a_later_epoch_is_told() -> None:
    class Shorter(Pairs):
        def set_epoch(self, epoch: int) -> None:
            self.short = epoch > 0

        def __iter__(self) -> Iterator[Any]:
            return iter(list(super().__iter__())[: 10 if self.short else 22])

    with pytest.raises(ValueError, match="count=22 must be no more images than a pass gives, 10"):
        batches(streamed(StreamImages(Shorter(), count=22)))
