"""Shards, parquet files and zip archives: splits, classes and images as they lie there, read by index."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ssl_blocks.data import HuggingFaceImages, ImageData, RandomResizedCropFlip, archives, load, train_loader
from ssl_blocks.data.sources import find_shape

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(12)]
datasets.disable_progress_bars()


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def write_tar(file: Path, members: Mapping[str, bytes], mode: str = "w") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1.5  # which needs an extended header, as WebDataset writes it
            tar.addfile(member, io.BytesIO(content))


def sample(i: int, **more: bytes) -> dict[str, bytes]:
    held = {"png": png(PIXELS[i]), "cls": str(LABELS[i]).encode(), **more}
    return {f"{i:04}.{suffix}": content for suffix, content in held.items()}


def shards(root: Path, name: str = "train-{:03}.tar", count: int = 3) -> None:
    for number in range(count):
        members: dict[str, bytes] = {}
        for i in range(12 * number // count, 12 * (number + 1) // count):
            members |= sample(i, json=b"{}")
        write_tar(root / name.format(number), members)


def values(split: Any) -> set[tuple[bytes, int]]:
    held = split.take(torch.arange(len(split)))
    return {
        (image.permute(1, 2, 0).contiguous().numpy().tobytes(), int(label))
        for image, label in zip(held.images, held.labels, strict=True)
    }


def whole(data: ImageData) -> set[tuple[bytes, int]]:
    return values(data.train) | (set() if data.test is None else values(data.test))


ALL = {(PIXELS[i].tobytes(), LABELS[i]) for i in range(12)}


@pytest.mark.parametrize("pattern", ["", "/train-{000..002}.tar", "/train-*.tar", "/train-00{0,1,2}.tar"])
def test_images_and_labels_of_shards_belong_together(pattern: str, tmp_path: Path) -> None:
    shards(tmp_path)
    data = load(f"shards:{tmp_path}{pattern}", root=tmp_path)
    assert whole(data) == ALL
    assert data.remarks == ("found 12 images in 3 classes; passed over 12 .json",)
    assert find_shape(f"shards:{tmp_path}{pattern}") == (3, 6, 8)


def test_names_of_shards_tell_splits(tmp_path: Path) -> None:
    shards(tmp_path / "train", "{:03}.tar", 2)
    write_tar(tmp_path / "val" / "000.tar", sample(3) | sample(7))
    data = load(f"shards:{tmp_path}")
    assert values(data.train) == ALL
    assert data.test is not None
    assert values(data.test) == {(PIXELS[i].tobytes(), LABELS[i]) for i in (3, 7)}


def test_shards_without_labels_are_folders(tmp_path: Path) -> None:
    members = {f"./set/{'abc'[LABELS[i]]}/{i}.png": png(PIXELS[i]) for i in range(12)}
    write_tar(tmp_path / "a.tar", dict(list(members.items())[:5]) | {"./set/._a/x.png": b""})
    write_tar(tmp_path / "b.tar", dict(list(members.items())[5:]))
    data = load(f"shards:{tmp_path}")
    assert whole(data) == ALL
    assert data.class_names == ("a", "b", "c")
    write_tar(tmp_path / "flat" / "c.tar", {f"{i}.png": png(PIXELS[i]) for i in range(12)})
    flat = load(f"shards:{tmp_path}/flat/c.tar")
    assert (flat.train.labels, len(flat.train), flat.test) == (None, 12, None)


def test_other_pictures_of_an_image_are_no_images(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", {"0.depth.png": png(PIXELS[1])} | {"0.png": png(PIXELS[0]), "my.photo.png": png(PIXELS[2])}
    )
    data = load(f"shards:{tmp_path}/a.tar")
    assert torch.equal(data.train.read(torch.arange(2))[1], torch.from_numpy(PIXELS[2]).permute(2, 0, 1))
    assert data.remarks == ("found 2 images; passed over 1 other picture of an image",)


def test_the_index_of_large_shards_is_kept_and_follows_the_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(archives, "WORTH_KEEPING", 4)
    shards(tmp_path, count=1)
    first = load(f"shards:{tmp_path}", root=tmp_path)
    assert len(list((tmp_path / "shards").iterdir())) == 1
    monkeypatch.setattr(archives, "_index", None)  # not made again
    again = load(f"shards:{tmp_path}", root=tmp_path)
    assert (whole(again), again.remarks) == (whole(first), first.remarks)
    monkeypatch.undo()
    write_tar(tmp_path / "train-000.tar", sample(0) | sample(1))
    assert len(whole(load(f"shards:{tmp_path}", root=tmp_path))) == 2


@pytest.mark.parametrize(
    ("make", "pattern", "reason"),
    [
        (lambda root: None, "nowhere-{00..01}.tar", r"nowhere-00.tar is none"),
        (lambda root: shards(root, count=1), "train-{000..001}.tar", r"train-001.tar is none"),
        (
            lambda root: write_tar(root / "a.tar", sample(0), "w:gz"),
            "a.tar",
            "must be a tar archive that is not compressed",
        ),
        (lambda root: write_tar(root / "a.tar", {"a.txt": b""}), "a.tar", "must hold images or class folders"),
        (
            lambda root: write_tar(root / "a.tar", sample(0, cls=b"cat")),
            "a.tar",
            "0000.cls must hold a class index, but holds b'cat'",
        ),
    ],
)
def test_what_is_no_shard_is_refused(make: Any, pattern: str, reason: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        load(f"shards:{tmp_path}/{pattern}")


def parquet(root: Path, *, named: bool = True) -> None:
    rows: dict[str, Any] = {"image": [{"bytes": png(p), "path": None} for p in PIXELS], "label": LABELS}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cow"])}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features) if named else None)
    root.mkdir(parents=True, exist_ok=True)
    table.select(range(7)).to_parquet(root / "train-00000-of-00002.parquet")
    table.select(range(7, 12)).to_parquet(root / "train-00001-of-00002.parquet")
    table.select([3, 7]).to_parquet(root / "validation-00000-of-00001.parquet")


@pytest.mark.parametrize("named", [True, False])
def test_parquet_as_hugging_face_writes_it(named: bool, tmp_path: Path) -> None:
    parquet(tmp_path / "data", named=named)
    data = load(f"parquet:{tmp_path}/data", root=tmp_path)
    assert values(data.train) == ALL
    assert data.test is not None
    assert values(data.test) == {(PIXELS[i].tobytes(), LABELS[i]) for i in (3, 7)}
    assert data.class_names == (("ant", "bee", "cow") if named else ("0", "1", "2"))
    before = sorted(tmp_path.rglob("*"))
    assert find_shape(f"parquet:{tmp_path}/data/train-*.parquet", root=tmp_path / "other") == (3, 6, 8)
    assert sorted(tmp_path.rglob("*")) == before  # a dry run writes nothing


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_processes_and_workers_see_every_image_once_and_go_on_in_mid_epoch(kind: str, tmp_path: Path) -> None:
    shards(tmp_path) if kind == "shards" else parquet(tmp_path)
    split = load(
        f"{kind}:{tmp_path}/train-*.{'tar' if kind == 'shards' else 'parquet'}",
        image_size=(6, 8),
        storage="stream",
        root=tmp_path,
    ).train

    def batches(**options: int) -> list[torch.Tensor]:
        crop = RandomResizedCropFlip((6, 8), scale=(1.0, 1.0), ratio=(8 / 6, 8 / 6), flip=False)
        return list(train_loader(split, seed=1, epochs=2, batch_size=4, crop=crop, **{"workers": 0, **options}))

    everything = batches()
    epochs = [torch.cat(everything[i : i + len(everything) // 2]) for i in (0, len(everything) // 2)]
    assert all(len(epoch.flatten(1).unique(dim=0)) == len(epoch) for epoch in epochs)
    assert not torch.equal(*epochs)
    shares = [batches(rank=rank, world_size=2, workers=2 * rank) for rank in (0, 1)]
    assert all(torch.equal(torch.cat(parts), one) for *parts, one in zip(*shares, everything, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batches(first_step=3, workers=2), everything[3:], strict=True))


def test_hugging_face_in_code_reads_files_and_bytes_undecoded(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    rows = {"x": [str(tmp_path / "a.png"), {"bytes": png(PIXELS[1]), "path": None}], "y": [1, 0]}
    held = datasets.Dataset.from_dict(
        {"x": rows["x"], "y": rows["y"]},
        features=datasets.Features({"x": datasets.Image(), "y": datasets.Value("int64")}),
    )
    source = HuggingFaceImages(held, label="y")
    assert source[0] == tmp_path / "a.png"
    assert pickle.loads(pickle.dumps(source))[1].content == png(PIXELS[1])
    assert values(load((source, source)).train) == {(PIXELS[i].tobytes(), 1 - i) for i in (0, 1)}
    assert load(held).train.labels is None
    with pytest.raises(ValueError, match="image='z' must be a column of images"):
        HuggingFaceImages(held, image="z")


def zipped(file: Path, names: list[str]) -> None:
    with zipfile.ZipFile(file, "w") as stored:
        for i, name in enumerate(names):
            stored.writestr(name, png(PIXELS[i % 12]) if name.endswith(".png") else b"")


@pytest.mark.parametrize(
    ("names", "classes", "counts", "passed"),
    [
        (
            ["set/ant/1/0.png", "set/bee/0.png", "set/bee/1.png", "set/.DS_Store", "set/0.txt"],
            ("ant", "bee"),
            (3, 0),
            "; passed over 1 hidden file, 1 .txt",
        ),
        (["w/train/a/0.png", "w/train/b/0.png", "w/val/a/0.png", "w/val/b/1.png"], ("a", "b"), (2, 2), ""),
        (
            ["a/0.png", "b/0.png", "stray.png", "@eaDir/a/0.png"],
            ("a", "b"),
            (2, 0),
            "; passed over 1 image beside the class folders",
        ),
        (["0.png", "1.png"], (), (2, 0), ""),
        (["10/0.png", "9/0.png", "x/9.png"], ("10", "9", "x"), (3, 0), ""),
    ],
)
def test_a_zip_archive_is_read_as_the_folder_that_it_holds(
    names: list[str], classes: tuple[str, ...], counts: tuple[int, int], passed: str, tmp_path: Path
) -> None:
    zipped(tmp_path / "a.zip", names)
    with zipfile.ZipFile(tmp_path / "a.zip") as held:
        held.extractall(tmp_path / "a")
    inner = next((tmp_path / "a" / top for top in ("set", "w") if (tmp_path / "a" / top).is_dir()), tmp_path / "a")
    data, folder = load(f"zip:{tmp_path}/a.zip"), load(f"imagefolder:{inner}")
    assert data.class_names == folder.class_names == classes
    assert data.remarks == folder.remarks
    assert data.remarks[0].partition(";")[2] == passed[1:]
    assert torch.equal(
        data.train.read(torch.arange(len(data.train))), folder.train.read(torch.arange(len(folder.train)))
    )
    if counts[1]:
        assert data.test is not None
        assert (len(data.train), len(data.test)) == counts
