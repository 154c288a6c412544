from pathlib import Path
from typing import Any, cast
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from torchvision.transforms.v2 import functional as TF

from ssl_blocks.data import ImageData, ImageSplit, crowds, load, sources
from ssl_blocks.data.crowds import make_crowds
from ssl_blocks.data.sources import find_shape


def assert_equal(a: ImageData, b: ImageData) -> None:
    assert torch.equal(a.train.images, b.train.images)
    assert a.test is not None
    assert b.test is not None
    assert torch.equal(a.test.images, b.test.images)


class TestDigits:
    def test_images_are_those_of_scikit_learn(self) -> None:
        data, bunch = load("digits"), load_digits()
        assert data.test is not None
        assert (len(data.train), len(data.test)) == (1297, 500)
        assert data.train.images.shape[1:] == (1, 8, 8)
        expected = np.round(bunch.images * 255 / 16).astype(np.uint8)
        ours = torch.cat((data.train.images, data.test.images)).flatten(1).tolist()
        assert sorted(ours) == sorted(expected.reshape(-1, 64).tolist())
        assert data.class_names == tuple("0123456789")

    def test_split_is_stratified_and_the_same_for_every_seed(self) -> None:
        data = load("digits", seed=0)
        assert data.test is not None
        assert data.test.labels is not None
        assert data.train.labels is not None
        total = data.train.labels.bincount() + data.test.labels.bincount()
        assert ((data.test.labels.bincount() - total * 500 / 1797).abs() < 1).all()
        assert_equal(data, load("digits", seed=1))

    def test_statistics_are_those_of_the_train_split(self) -> None:
        data = load("digits", max_train=50)
        pixels = data.train.images.double() / 255
        assert data.mean == pytest.approx([pixels.mean().item()])
        assert data.std == pytest.approx([pixels.std(correction=0).item()])

    def test_resizing_equals_antialiased_interpolation(self) -> None:
        native, larger = load("digits", max_train=30), load("digits", max_train=30, image_size=20)
        expected = TF.resize(native.train.images.float(), [20, 20], antialias=True)
        assert larger.train.images.shape == (30, 1, 20, 20)
        assert (larger.train.images - expected).abs().max() <= 1

    def test_max_train_takes_the_same_number_of_each_class(self) -> None:
        data = load("digits", max_train=43, max_test=20, seed=3)
        assert data.test is not None
        assert data.test.labels is not None
        assert data.train.labels is not None
        assert sorted(data.train.labels.bincount().tolist()) == [4] * 7 + [5] * 3
        assert data.test.labels.bincount().tolist() == [2] * 10

    def test_subset_follows_the_seed_alone(self) -> None:
        first, again = load("digits", max_train=20, seed=1), load("digits", max_train=20, seed=1)
        torch.manual_seed(0)
        assert_equal(first, again)
        other = load("digits", max_train=20, seed=2)
        assert not torch.equal(first.train.images, other.train.images)

    def test_max_train_has_no_influence_on_the_test_images(self) -> None:
        some, all_ = load("digits", max_train=20, max_test=30), load("digits", max_test=30)
        assert some.test is not None
        assert all_.test is not None
        assert torch.equal(some.test.images, all_.test.images)

    def test_nothing_is_drawn_from_the_global_generator(self) -> None:
        before = torch.get_rng_state()
        load("digits", max_train=20)
        assert torch.equal(torch.get_rng_state(), before)


class TestGenerated:
    @pytest.mark.parametrize(("name", "classes", "count"), [("volumes", 5, 400), ("waves", 5, 400), ("cells", 4, 2000)])
    def test_it_is_the_same_for_everyone_in_equal_classes_that_differ(
        self, name: str, classes: int, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sources, "NUM_TRAIN", count)
        monkeypatch.setattr(sources, "NUM_TEST", count // 4)
        data, again = load(name, seed=1), load(name, seed=2)
        assert_equal(data, again)
        assert data.shape == find_shape(name)
        assert len(data.class_names) == classes
        assert data.test is not None
        assert data.train.labels is not None
        assert data.train.labels.bincount().tolist() == [count // classes] * classes
        assert not torch.equal(data.train.images[: len(data.test)], data.test.images)
        train, test = (split.images.flatten(1).float() for split in (data.train, data.test))
        guessed = data.train.labels[torch.cdist(test, train).argmin(1)]
        assert (guessed == data.test.labels).float().mean() > 1.8 / classes  # the nearest one tells something


class TestCrowds:
    def test_an_image_holds_ten_digits_of_one_class_white_or_black_each_near_a_cell_of_its_own(self) -> None:
        labels, values = torch.arange(110) % 10, 31 + 2 * torch.arange(110)
        points = torch.zeros(110, 1, 8, 8, dtype=torch.uint8)
        points[:, 0, 3, 3] = values.to(torch.uint8)  # a digit is one point of a value of its own, which none covers
        images, wanted = make_crowds(points, labels, 200, torch.Generator().manual_seed(0))
        assert wanted.tolist() == [label for label in range(10) for _ in range(20)]
        grounds, colors, strays = set(), set(), set()
        for image, label in zip(images[:, 0].int(), wanted.tolist(), strict=True):
            ground = int(image.mode().values.mode().values)
            places = (image != ground).nonzero()
            differences = image[tuple(places.T)] - 127.5
            found = ((2 * differences.abs()).int() - 31) // 2
            assert len(set(found.tolist())) == len(found) == 10
            assert (found % 10 == label).all()
            cells = (places - 3 + 4) // 8
            assert len(cells.unique(dim=0)) == 10
            grounds.add(ground)
            colors |= {(label, int(sign)) for sign in differences.sign()}
            strays |= set((places - 3 - 8 * cells).flatten().tolist())
        assert grounds == {128}
        assert len(colors) == 20
        assert strays == {-1, 0, 1}

    def test_too_few_digits_are_one_clear_error(self) -> None:
        labels = torch.arange(99) % 10
        with pytest.raises(ValueError, match="labels must hold at least 10 digits of each class, got 9 of class 9"):
            crowds.make_crowds(torch.zeros(99, 1, 8, 8, dtype=torch.uint8), labels, 20, torch.Generator())

    def test_no_digit_is_in_both_splits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(crowds, "NUM_TRAIN", 600)
        monkeypatch.setattr(crowds, "NUM_TEST", 100)
        pools = []
        monkeypatch.setattr(crowds, "make_crowds", lambda *given: pools.append(given[:3]) or make_crowds(*given))
        data, digits = load("crowds", seed=1), load("digits")
        assert data.shape == find_shape("crowds")
        assert data.class_names == digits.class_names
        assert [len(split) for split in (data.train, data.test)] == [600, 100]
        for (images, labels, _), split in zip(pools, (digits.train, digits.test), strict=True):
            assert torch.equal(images, split.images)
            assert torch.equal(labels, split.labels)
        assert_equal(data, load("crowds", seed=2))

    def test_mean_images_do_not_tell_the_class_but_their_contrast_does(self) -> None:
        data = load("crowds")
        x = [(split.images.flatten(1).double() / 127.5 - 1) for split in (data.train, data.test)]
        means = torch.stack([x[0][data.train.labels == label].mean(0) for label in range(10)])
        assert (torch.cdist(x[1], means).argmin(1) == data.test.labels).double().mean() < 0.2
        means = torch.stack([x[0][data.train.labels == label].square().mean(0) for label in range(10)])
        assert (torch.cdist(x[1].square(), means).argmin(1) == data.test.labels).double().mean() > 0.4


class TestCifar10:
    def test_failed_download_is_one_clear_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise URLError("no route to host")

        monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
        with pytest.raises(FileNotFoundError, match=r"root='.*the download failed .*no route.*imagefolder:PATH"):
            load("cifar10", root=tmp_path)

    def test_broken_files_are_one_clear_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", lambda _: None)
        with pytest.raises(FileNotFoundError, match="name='cifar10' must be found in root"):
            load("cifar10", root=tmp_path)

    def test_channels_come_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Fake:
            base_folder, url = "folder", "url"
            classes = ("cat", "dog")

            def __init__(self, root: Path, *, train: bool, download: bool) -> None:
                count = 6 if train else 4
                self.data = np.zeros((count, 32, 32, 3), np.uint8)
                self.data[..., 2] = 255
                self.targets = [i % 2 for i in range(count)]

        monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
        data = load("cifar10", root=tmp_path, image_size=16)
        assert data.train.images.shape == (6, 3, 16, 16)
        assert data.test is not None
        assert len(data.test) == 4
        assert data.mean == (0, 0, 1)
        assert data.std == (1, 1, 1)  # constant channels
        assert data.class_names == ("cat", "dog")


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "nearest"), [("cifar", "cifar10"), ("digit", "digits"), ("image-folder", "imagef")]
    )
    def test_unknown_name(self, name: str, nearest: str) -> None:
        with pytest.raises(
            ValueError,
            match=f"name='{name}' must be one of digits, .*, imagefolder:PATH.*; did you mean '{nearest}",
        ):
            load(name)

    @pytest.mark.parametrize("argument", ["image_size", "max_train", "max_test"])
    def test_numbers_below_one(self, argument: str) -> None:
        with pytest.raises(ValueError, match=f"{argument}=0 must be at least 1"):
            load("digits", **cast(Any, {argument: 0}))

    def test_memory_of_resized_digits(self) -> None:
        with pytest.raises(ValueError, match=r"max_bytes=1000000 .*1797 images of 1x32x32 need 1840128"):
            load("digits", image_size=32, max_bytes=10**6)


class TestImageSplit:
    def test_wrong_dtype(self) -> None:
        with pytest.raises(TypeError, match=r"(?i)uint"):
            ImageSplit(torch.zeros(1, 1, 2, 2), None)

    def test_wrong_shapes(self) -> None:
        images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
        with pytest.raises((ValueError, TypeError), match="images"):
            ImageSplit(images[0], None)
        with pytest.raises((ValueError, TypeError), match="labels"):
            ImageSplit(images, torch.zeros(3, dtype=torch.int64))
