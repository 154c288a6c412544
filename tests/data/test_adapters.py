"""Data of any kind gives the images and labels that it holds, through `load`, in memory and streamed."""

import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from ssl_blocks.data import (
    ArrayImages,
    CsvFiles,
    DatasetImages,
    RandomResizedCropFlip,
    adapters,
    load,
    register_source,
    train_loader,
)
from ssl_blocks.data.adapters import as_found
from ssl_blocks.data.archives import read_zip
from ssl_blocks.data.sources import KINDS, find_shape

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(12)]
IMAGES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


class Pairs(Dataset):
    """Pictures and labels, and no word about either."""

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(PIXELS[index]), LABELS[index]


def files(root: Path) -> list[Path]:
    root.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(root / f"{i:02}.png")
    return sorted(root.iterdir())


def table(root: Path) -> CsvFiles:
    files(root / "pictures")
    rows = [f"pictures/{i:02}.png,{['cat', 'dog', 'emu'][label]}" for i, label in enumerate(LABELS)]
    (root / "list.csv").write_text("\n".join(["file,label", *rows]))
    return CsvFiles(root / "list.csv")


def archive(root: Path) -> str:
    with zipfile.ZipFile(root / "set.zip", "w") as stored:
        for i, file in enumerate(files(root / "pictures")):
            stored.write(file, f"set/{['cat', 'dog', 'emu'][LABELS[i]]}/{i:02}.png")
        stored.writestr("__MACOSX/set/cat/._00.png", b"no image")
    return f"zip:{root}/set.zip"


SOURCES: dict[str, Any] = {
    "data set": lambda root: Pairs(),
    "mappings": lambda root: [{"image": p, "label": i} for p, i in zip(PIXELS, LABELS, strict=True)],
    "arrays": lambda root: ArrayImages(PIXELS, LABELS),
    "tensors": lambda root: ArrayImages(IMAGES, torch.tensor(LABELS)),
    "deep tensors": lambda root: ArrayImages(IMAGES.int() * 10, torch.tensor(LABELS)),
    "table": table,
    "archive": archive,
}


def everything(data: Any) -> dict[bytes, int]:
    """Label of every image, whatever split it is in."""
    parts = [part.take(torch.arange(len(part))) for part in (data.train, data.test)]
    return {
        image.numpy().tobytes(): int(label)
        for part in parts
        for image, label in zip(part.images.contiguous(), part.labels, strict=True)
    }


@pytest.mark.parametrize("kind", SOURCES)
def test_images_and_labels_belong_together(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    given = {"value_range": (0.0, 655350.0)} if kind == "deep tensors" else {}
    data = load(source, **given)
    scaled = IMAGES if not given else (IMAGES.double() * 10 / 655350 * 65535).round().to(torch.uint16)
    expected = {image.contiguous().numpy().tobytes(): label for image, label in zip(scaled, LABELS, strict=True)}
    assert everything(data) == expected
    assert data.remarks[0] == "found 12 images in 3 classes"
    assert find_shape(source) == (3, 6, 8)


@pytest.mark.parametrize("kind", ["data set", "table", "archive"])
def test_streamed_batches_are_those_of_memory(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    held, streamed = (load(source, image_size=(6, 8), storage=how) for how in ("memory", "stream"))
    assert streamed.is_streamed
    assert everything(held) == everything(streamed)
    crop = RandomResizedCropFlip((6, 8), scale=(1.0, 1.0), ratio=(8 / 6, 8 / 6), flip=False)
    several = [next(iter(train_loader(d.train, seed=1, crop=crop, workers=0, batch_size=4))) for d in (held, streamed)]
    assert torch.equal(*several)


@pytest.mark.process
@pytest.mark.parametrize("kind", ["data set", "archive"])
def test_workers_read_what_one_process_reads(kind: str, tmp_path: Path) -> None:
    data = load(SOURCES[kind](tmp_path), image_size=(6, 8), storage="stream")
    crop = RandomResizedCropFlip((6, 8))
    one, two = (
        torch.cat(list(train_loader(data.train, seed=1, crop=crop, workers=workers, batch_size=4, epochs=3)))
        for workers in (0, 2)
    )
    assert torch.equal(one, two)


def test_an_archive_is_pickled_closed(tmp_path: Path) -> None:
    archive(tmp_path)
    source: Any = read_zip(tmp_path / "set.zip").train.items
    first = source[0]
    again = pickle.loads(pickle.dumps(source))
    assert again[0] == first


def test_two_sources_are_train_and_test() -> None:
    data = load((ArrayImages(PIXELS[:8], LABELS[:8]), ArrayImages(PIXELS[8:], LABELS[8:])))
    assert torch.equal(data.train.images, IMAGES[:8])
    assert data.test is not None
    assert torch.equal(data.test.images, IMAGES[8:])


def test_arrays_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    assert torch.equal(load(f"array:{tmp_path}/a.npy").train.images, IMAGES)
    assert len(everything(load(f"array:{tmp_path}/a.npz"))) == 12


def test_code_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_images.py").write_text(
        "import torch\ndef make():\n    return torch.ones(4, 1, 8, 8).to(torch.uint8)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load("my_images:make").shape == (1, 8, 8)
    sys.modules.pop("my_images")
    with pytest.raises(ValueError, match="'my_images:other' cannot be imported"):
        load("my_images:other")


def test_registered_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_blocks.data.sources.KINDS", dict(KINDS))
    register_source("plain:", lambda side: torch.zeros(4, 1, int(side), 8, dtype=torch.uint8))
    assert load("plain:5").shape == (1, 5, 8)
    with pytest.raises(ValueError, match="name='zip:' must be another one"):
        register_source("zip:", lambda path: PIXELS)


def test_labels_of_a_table_may_be_missing_or_numbers(tmp_path: Path) -> None:
    names = [file.name for file in files(tmp_path)]
    (tmp_path / "some.csv").write_text(
        "path,class\n" + "\n".join(f"{n},{'2' if i else ''}" for i, n in enumerate(names))
    )
    source = CsvFiles(tmp_path / "some.csv")
    assert source.labels is not None
    assert source.labels.tolist() == [-1] + [2] * 11
    assert source.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: as_found(3), "data of type int must be a Source, a data set"),
        (lambda: as_found({"a": 1}), "data of type dict must be a Source"),
        (lambda: ArrayImages(np.zeros((3, 4))), r"images of shape \(3, 4\) must be"),
        (lambda: ArrayImages(PIXELS, LABELS[:5]), r"labels of .* must be one whole number for each of 12"),
        (lambda: ArrayImages(PIXELS, [0.5] * 12), r"labels of torch.float64 .* must be one whole number"),
        (lambda: ArrayImages(PIXELS, LABELS, ["a", "b"]), "class_names must be one for each of 3 classes"),
        (lambda: DatasetImages([]), "must hold at least one image"),
        (lambda: DatasetImages([{"pixels": 0}]), r"must name one of the data set's fields \['pixels'\]"),
        (lambda: CsvFiles("nowhere.csv"), "csv:nowhere.csv must name a file"),
        (lambda: load("zip:nowhere.zip"), "zip:nowhere.zip must name a file"),
        (lambda: load("array:nowhere.npy"), "array:nowhere.npy must name a file"),
        (lambda: load("hf:nowhere"), "hf:nowhere must name a folder"),
        (lambda: load("csv:"), "must name a file: csv:PATH"),
    ],
)
def test_what_is_no_data_is_refused(make: Any, reason: str) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=reason):
        make()


def test_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "emu"])})
    rows = {"image": [Image.fromarray(p) for p in PIXELS], "label": LABELS}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    data = load(f"hf:{tmp_path}/set")
    assert data.class_names == ("cat", "dog", "emu")
    assert everything(data) == everything(load(ArrayImages(PIXELS, LABELS)))


class Told(Pairs):
    """Knows its labels and classes without its items being read."""

    targets = LABELS
    classes = ("cat", "dog", "emu")

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.read = [*getattr(self, "read", []), index]
        return super().__getitem__(index)


def test_labels_that_a_data_set_tells_are_not_read_out_of_its_items() -> None:
    told = Told()
    wrapped = ConcatDataset([Subset(told, [3, 4, 5]), Subset(Subset(told, range(6, 12)), [1, 2])])
    source = DatasetImages(wrapped)
    assert source.labels is not None
    assert source.labels.tolist() == [LABELS[i] for i in (3, 4, 5, 7, 8)]
    assert source.class_names == ("cat", "dog", "emu")
    assert told.read == [3]  # to see what an item looks like


def test_reading_items_for_their_labels_is_told_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    DatasetImages(Pairs())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(adapters, "TELL_EVERY", -1.0)
    DatasetImages(Pairs())
    assert "reading every item for its label: 5 of 12 (DatasetImages(dataset, labels=...)" in capsys.readouterr().err
