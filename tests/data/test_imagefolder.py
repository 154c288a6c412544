from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from ssl_blocks.data import ImageData, ImageSplit, files, load, splits


def picture(value: int, height: int = 8, width: int = 8) -> Tensor:
    """A picture that its first pixel identifies."""
    image = torch.arange(3 * height * width).remainder(251).to(torch.uint8).view(3, height, width)
    image[:, 0, 0] = value
    return image


def save(image: Tensor, file: Path) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)


def make_classes(root: Path, counts: dict[str, int], **size: int) -> Path:
    """Class folders of PNGs; the j-th picture of the i-th class holds 50 i + j."""
    for i, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for j in range(count):
            save(picture(50 * i + j, **size), root / name / f"{j:03}.png")
    return root


def values(split: ImageSplit) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def spy_on_decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that names every file as it is decoded."""
    opened: list[str] = []

    open_image = Image.open

    def spy(file: Path, **options) -> Image.Image:
        opened.append(str(file))
        return open_image(file, **options)

    monkeypatch.setattr(files.Image, "open", spy)
    return opened


class TestImageFolder:
    @pytest.mark.parametrize("test_name", ["test", "val"])
    def test_train_and_test_folders(self, tmp_path: Path, test_name: str) -> None:
        make_classes(tmp_path / "train", {"ant": 2, "bee": 3})
        make_classes(tmp_path / test_name, {"ant": 1, "bee": 2})
        data = load(f"imagefolder:{tmp_path}")
        assert data.test is not None
        assert values(data.train) == [0, 1, 50, 51, 52]
        assert values(data.test) == [0, 50, 51]
        assert data.train.labels is not None
        assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
        assert data.class_names == ("ant", "bee")
        assert torch.equal(data.train.images[1], picture(1))

    def test_class_folders_alone_have_a_stratified_tenth_held_out(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"ant": 20, "bee": 10})
        data = load(f"imagefolder:{tmp_path}", seed=5)
        assert data.test is not None
        assert data.test.labels is not None
        assert data.test.labels.tolist() == [0, 0, 1]
        assert sorted(values(data.train) + values(data.test)) == [*range(20), *range(50, 60)]
        again = load(f"imagefolder:{tmp_path}", seed=5)
        assert again.test is not None
        assert (values(again.train), values(again.test)) == (values(data.train), values(data.test))
        held_out = [values(load(f"imagefolder:{tmp_path}", seed=seed).test or data.train) for seed in range(3)]
        assert len({tuple(x) for x in held_out}) > 1

    def test_train_folder_alone_is_split_too(self, tmp_path: Path) -> None:
        make_classes(tmp_path / "train", {"ant": 5, "bee": 5})
        data = load(f"imagefolder:{tmp_path}")
        assert data.test is not None
        assert (len(data.train), len(data.test), data.class_names) == (9, 1, ("ant", "bee"))

    def test_train_beside_other_classes_is_a_class(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"bus": 3, "train": 3})
        assert load(f"imagefolder:{tmp_path}").class_names == ("bus", "train")

    def test_one_image_is_all_for_training(self, tmp_path: Path) -> None:
        data = load(f"imagefolder:{make_classes(tmp_path, {'ant': 1})}")
        assert (len(data.train), data.test) == (1, None)

    def test_flat_folder_has_no_labels_and_no_test(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"flat": 4})
        data = load(f"imagefolder:{tmp_path / 'flat'}", max_train=3)
        assert data.train.labels is None
        assert data.test is None
        assert data.class_names == ()
        assert len(data.train) == 3

    def test_unlabelled_test_folder_gives_way_to_val(self, tmp_path: Path) -> None:
        make_classes(tmp_path / "train", {"ant": 2})
        make_classes(tmp_path / "val", {"ant": 1})
        make_classes(tmp_path, {"test": 3})
        data = load(f"imagefolder:{tmp_path}")
        assert data.test is not None
        assert len(data.test) == 1

    def test_other_and_hidden_files_are_passed_over(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"ant": 2, "bee": 2})
        for name in ("README.txt", ".hidden.png", "ant/._000.png", "ant/Thumbs.db"):
            (tmp_path / name).write_bytes(b"no image")
        (tmp_path / ".cache").mkdir()
        data = load(f"imagefolder:{tmp_path}")
        assert data.test is not None
        assert len(data.train) + len(data.test) == 4

    def test_pool_of_threads_keeps_the_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(splits, "FILES_PER_JOB", 3)
        make_classes(tmp_path, {"flat": 40})
        assert values(load(f"imagefolder:{tmp_path / 'flat'}").train) == list(range(40))

    def test_only_the_images_kept_are_decoded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = spy_on_decoding(monkeypatch)
        make_classes(tmp_path / "train", {"ant": 9, "bee": 9})
        make_classes(tmp_path / "test", {"ant": 9, "bee": 9})
        data = load(f"imagefolder:{tmp_path}", max_train=4, max_test=2)
        assert data.train.labels is not None
        assert data.train.labels.tolist() == [0, 0, 1, 1]
        assert len(set(opened)) == 6

    @pytest.mark.parametrize(("height", "width"), [(20, 30), (31, 17), (5, 9)])
    def test_shorter_side_is_resized_and_the_centre_cropped(self, tmp_path: Path, height: int, width: int) -> None:
        make_classes(tmp_path, {"flat": 2}, height=height, width=width)
        image = load(f"imagefolder:{tmp_path / 'flat'}", image_size=10).train.images[1]
        short = min(height, width)
        size = [10 * height // short, 10 * width // short]
        whole = torch.nn.functional.interpolate(
            picture(1, height, width)[None].float(), size, mode="bilinear", antialias=True
        )[0]
        top, left = round((size[0] - 10) / 2), round((size[1] - 10) / 2)
        assert (image - whole[:, top : top + 10, left : left + 10]).abs().max() <= 1

    def test_grey_and_jpeg_files_become_rgb(self, tmp_path: Path) -> None:
        Image.new("L", (8, 8), 7).save(tmp_path / "grey.PNG")
        Image.new("L", (8, 8), 90).save(tmp_path / "grey.jpeg")
        images = load(f"imagefolder:{tmp_path}").train.images
        assert images.shape == (2, 3, 8, 8)
        assert images.flatten(1).tolist() == [[7] * 192, [90] * 192]


class TestErrors:
    @pytest.mark.parametrize("name", ["imagefolder", "imagefolder:"])
    def test_imagefolder_without_path(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"name='{name}' must name a folder: imagefolder:PATH"):
            load(name)

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere must name an existing folder"):
            load(f"imagefolder:{tmp_path}/nowhere")

    def test_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no image")
        with pytest.raises(ValueError, match="must hold images or class folders, but has neither"):
            load(f"imagefolder:{tmp_path}")

    def test_class_folder_without_images(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"ant": 2, "bee": 0})
        with pytest.raises(ValueError, match="class folder 'bee' must hold images"):
            load(f"imagefolder:{tmp_path}")

    def test_classes_of_train_and_test_differ(self, tmp_path: Path) -> None:
        make_classes(tmp_path / "train", {"ant": 1, "bee": 1})
        make_classes(tmp_path / "test", {"ant": 1, "cow": 1})
        with pytest.raises(ValueError, match=r"only train has \['bee'\] and only test has \['cow'\]"):
            load(f"imagefolder:{tmp_path}")

    @pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
    def test_undecodable_image_is_named(self, tmp_path: Path, content: bytes) -> None:
        make_classes(tmp_path, {"flat": 3})
        (tmp_path / "flat" / "broken.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken.png must be a readable image: "):
            load(f"imagefolder:{tmp_path / 'flat'}")

    def test_two_sizes_without_image_size(self, tmp_path: Path) -> None:
        make_classes(tmp_path / "train", {"ant": 1})
        make_classes(tmp_path / "test", {"ant": 1}, height=6, width=9)
        message = "image_size=None .*train/ant/000.png is 3x8x8 and .*test/ant/000.png is 3x6x9 .*: give image_size"
        with pytest.raises(ValueError, match=message):
            load(f"imagefolder:{tmp_path}")
        assert load(f"imagefolder:{tmp_path}", image_size=6).train.images.shape == (1, 3, 6, 6)

    def test_memory_is_refused_before_more_than_one_image_is_decoded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = spy_on_decoding(monkeypatch)
        make_classes(tmp_path, {"flat": 10})
        name = f"imagefolder:{tmp_path / 'flat'}"
        with pytest.raises(ValueError, match=r"max_bytes=1919 .*10 images of 3x8x8 need 1920 .*max_train.*image_size"):
            load(name, max_bytes=1919)
        assert len(set(opened)) == 1
        assert len(load(name, max_bytes=1920).train) == 10
        assert len(load(name, max_bytes=1919, max_train=9).train) == 9


class TestKindsOfImages:
    def test_exif_orientation_is_applied(self, tmp_path: Path) -> None:
        pixels = picture(7, 4, 6).permute(1, 2, 0).numpy()
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
        Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
        images = load(f"imagefolder:{tmp_path}").train.images
        assert images.shape == (1, 3, 6, 4)
        assert torch.equal(images[0], picture(7, 4, 6).rot90(-1, (1, 2)))

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
    def test_every_mode_becomes_rgb(self, tmp_path: Path, mode: str) -> None:
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(tmp_path / f"white.{suffix}")
        images = load(f"imagefolder:{tmp_path}").train.images
        assert images.shape == (1, 3, 8, 8)
        assert int(images.min()) >= 250

    def test_sixteen_bits_are_scaled_not_cut_off(self, tmp_path: Path) -> None:
        values16 = (torch.arange(64).view(8, 8) * 1000).to(torch.int32).numpy().astype("uint16")
        Image.fromarray(values16).save(tmp_path / "deep.png")
        images = load(f"imagefolder:{tmp_path}").train.images
        assert torch.equal(images[0, 0].int(), torch.arange(64, dtype=torch.int32).view(8, 8) * 1000)


class TestHeldOut:
    def test_every_class_keeps_an_image_to_train_on(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"ant": 1, "bee": 1, "cat": 30})
        for seed in range(10):
            data = load(f"imagefolder:{tmp_path}", seed=seed)
            assert data.train.labels is not None
            assert data.test is not None
            assert data.train.labels.unique().tolist() == [0, 1, 2]
            assert data.test.labels is not None
            assert data.test.labels.unique().tolist() == [2]

    def test_one_image_per_class_leaves_no_test_split(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"ant": 1, "bee": 1, "cat": 1})
        data = load(f"imagefolder:{tmp_path}")
        assert data.test is None
        assert len(data.train) == 3


class TestFoldersAsTheyAre:
    """Torchvision's ``ImageFolder`` is the measure; what is not read is counted, by kind."""

    def read(self, root: Path) -> tuple[int, ImageData]:
        data = load(f"imagefolder:{root}")
        return len(data.train) + (0 if data.test is None else len(data.test)), data

    def test_images_at_any_depth_are_of_the_class_folder_above(self, tmp_path: Path) -> None:
        make_classes(tmp_path / "ant", {"images": 3, "2024/05": 2})
        make_classes(tmp_path, {"bee": 4})
        save(picture(9), tmp_path / "ant" / "loose.png")
        count, data = self.read(tmp_path)
        assert count == len(ImageFolder(tmp_path)) == 10
        assert data.class_names == ("ant", "bee")
        assert data.remarks == ("found 10 images in 2 classes",)

    def test_images_beside_class_folders_are_passed_over_and_told(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"ant": 4})
        save(picture(0), tmp_path / "stray.png")
        (tmp_path / "notes.txt").write_text("no image")
        count, data = self.read(tmp_path)
        assert count == len(ImageFolder(tmp_path)) == 4
        kinds = "1 image beside the class folders, 1 .txt"
        assert data.remarks[0].split("passed over ")[1] in (kinds, ", ".join(reversed(kinds.split(", "))))

    def test_images_beside_folders_without_images(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"flat": 3})
        (tmp_path / "flat" / "notes").mkdir()
        count, data = self.read(tmp_path / "flat")
        assert (count, data.class_names) == (3, ())

    def test_folders_of_storage_devices_are_no_classes(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"ant": 3, "bee": 1, "@eaDir": 3, "__MACOSX": 3, ".thumbs": 3})
        make_classes(tmp_path / "ant", {"@eaDir": 2, ".cache": 2})
        count, data = self.read(tmp_path)
        assert (count, data.class_names) == (4, ("ant", "bee"))

    def test_what_cannot_be_read_is_counted_by_kind(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"ant": 4, "bee": 4})
        for i in range(12):
            (tmp_path / "ant" / f"gone{i}.jpg").symlink_to("/nowhere/x.jpg")
        for i in range(3):
            (tmp_path / "bee" / f"{i}.HEIC").write_bytes(b"phone")
        count, data = self.read(tmp_path)
        assert count == 8
        assert data.remarks == ("found 8 images in 2 classes; passed over 12 dangling links, 3 .heic",)
        assert len(data.skipped) == 12

    def test_links_are_followed_but_not_in_circles(self, tmp_path: Path) -> None:
        make_classes(tmp_path / "elsewhere", {"bee": 2})
        make_classes(tmp_path / "set", {"ant": 2})
        (tmp_path / "set" / "bee").symlink_to(tmp_path / "elsewhere" / "bee")
        (tmp_path / "set" / "ant" / "again").symlink_to(tmp_path / "set" / "ant")
        count, data = self.read(tmp_path / "set")
        assert (count, data.class_names) == (4, ("ant", "bee"))

    def test_one_class_is_no_label(self, tmp_path: Path) -> None:
        make_classes(tmp_path, {"all": 20})
        count, data = self.read(tmp_path)
        assert (count, data.class_names, data.train.labels) == (20, (), None)
        assert data.remarks == ("found 20 images",)
