"""Data sets of torchvision, out of small files in their own formats."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from ssl_blocks.data import find_shape, load


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, label_key: str) -> dict[str, np.ndarray]:
    """Write batches of 10 images as CIFAR's archives hold them."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    written, lists = {}, {}
    for split in ("train_list", "test_list"):
        entries = []
        for number, (name, _) in enumerate(getattr(kind, split)):
            pixels = noise(10, 3072, seed=len(written))
            content = {"data": pixels, label_key: [(number + i) % 10 for i in range(10)]}
            (folder / name).write_bytes(pickle.dumps(content))
            entries.append([name, md5(folder / name)])
            written[name] = pixels.reshape(10, 3, 32, 32)
        lists[split] = entries
    names = [f"class {i}" for i in range(10)]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    monkeypatch.setattr(kind, "train_list", lists["train_list"])
    monkeypatch.setattr(kind, "test_list", lists["test_list"])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / kind.meta["filename"])})
    return written


@pytest.mark.parametrize(
    ("name", "kind", "label_key"),
    [("cifar10", datasets.CIFAR10, "labels"), ("cifar100", datasets.CIFAR100, "fine_labels")],
)
def test_cifar(name: str, kind: Any, label_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = cifar(tmp_path, monkeypatch, kind, label_key)
    data = load(name, root=tmp_path)
    first, last = next(iter(written.values())), list(written.values())[-1]
    assert torch.equal(data.train.images[:10], torch.from_numpy(first))
    assert torch.equal(data.test.images, torch.from_numpy(last))
    assert data.train.labels[:10].tolist() == list(range(10))
    assert data.class_names[3] == "class 3"
    assert data.shape == find_shape(name) == (3, 32, 32)


def test_stl10_trains_on_unlabelled_images_too_and_scores_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    columns = noise(30, 3, 96, 96)  # STL-10 is stored column by column
    parts = {"train_X.bin": columns[:20], "unlabeled_X.bin": columns[20:], "test_X.bin": columns[:5]}
    for name, pixels in parts.items():
        (folder / name).write_bytes(pixels.tobytes())
    labels = np.arange(20, dtype=np.uint8) % 10 + 1
    (folder / "train_y.bin").write_bytes(labels.tobytes())
    (folder / "test_y.bin").write_bytes(labels[:5].tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    kind = datasets.STL10
    monkeypatch.setattr(kind, "train_list", [[name, md5(folder / name)] for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[name, md5(folder / name)] for name, _ in kind.test_list])
    data = load("stl10", root=tmp_path)
    assert (len(data.train), len(data.test)) == (30, 5)
    assert data.train.labels.tolist() == [i % 10 for i in range(20)] + [-1] * 10
    assert torch.equal(data.train.images, torch.from_numpy(columns).transpose(2, 3))
    assert data.shape == find_shape("stl10") == (3, 96, 96)
    sample = data.sample()
    assert len(sample.train) == 20
    assert sample.train.labels.min() == 0
    few = load("stl10", root=tmp_path, max_train=25)  # an unlabelled image is of no class of its own
    assert len(few.train) == 25


def test_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = noise(12, 28, 28)
    for prefix, chosen in (("train", pixels), ("t10k", pixels[:4])):
        head = np.array([0x00000803, *chosen.shape], dtype=">u4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + chosen.tobytes())
        head = np.array([0x00000801, len(chosen)], dtype=">u4").tobytes()
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            head + (np.arange(len(chosen), dtype=np.uint8) % 10).tobytes()
        )
    data = load("fashion-mnist", root=tmp_path)
    assert torch.equal(data.train.images[:, 0], torch.from_numpy(pixels))
    assert data.test.labels.tolist() == [0, 1, 2, 3]
    assert data.shape == find_shape("fashion-mnist") == (1, 28, 28)
    assert (
        load("fashion-mnist", root=tmp_path, channels=3).shape == find_shape("fashion-mnist", channels=3) == (3, 28, 28)
    )


def test_imagenet_is_read_from_what_torchvision_unpacked(tmp_path: Path) -> None:
    words = ["n01", "n02"]
    classes = {"n01": ("ant", "emmet"), "n02": ("bee",)}
    torch.save((classes, ["n01"]), tmp_path / "meta.bin")
    for split, count in (("train", 4), ("val", 2)):
        for word in words:
            (tmp_path / split / word).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(noise(40, 50, 3, seed=i)).save(tmp_path / split / word / f"{i}.JPEG")
    data = load("imagenet", root=tmp_path, image_size=16)
    assert data.class_names == ("ant", "bee")
    assert (len(data.train), len(data.test)) == (8, 4)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert load("imagenet", root=tmp_path, image_size=16, storage="stream").is_streamed
    assert find_shape("imagenet", root=tmp_path, image_size=16) == (3, 16, 16)
    with pytest.raises(FileNotFoundError, match=r"name='imagenet' must be found in root=.*nowhere.*imagefolder:PATH"):
        load("imagenet", root=tmp_path / "nowhere", image_size=16)


def test_channels_of_images_in_memory() -> None:
    grey, color = load("digits", max_train=20), load("digits", max_train=20, channels=3)
    assert torch.equal(color.train.images, grey.train.images.expand(-1, 3, -1, -1))
    assert len(color.mean) == 3
    with pytest.raises(ValueError, match="channels=4 must be 1 or 3 for images of 1 channels"):
        load("digits", channels=4)


def test_folders_of_arrays_keep_their_channels(tmp_path: Path) -> None:
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", noise(20, 24, 5, seed=i))
    for storage in ("memory", "stream"):
        data = load(f"imagefolder:{tmp_path}", image_size=8, storage=storage)
        assert data.shape == (5, 8, 8)
        assert len(data.mean) == len(data.std) == 5
        assert data.train.read(torch.tensor([2, 0])).shape == (2, 5, 8, 8)
    grey = tmp_path / "grey"
    grey.mkdir()
    Image.fromarray(noise(9, 9, 3)).save(grey / "a.png")
    assert load(f"imagefolder:{grey}", channels=1).shape == find_shape(f"imagefolder:{grey}", channels=1) == (1, 9, 9)
