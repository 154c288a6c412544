"""Images and masks from files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ssl_blocks as sb
from ssl_blocks.data import (
    ImageMaskFiles,
    MaskedImages,
    ShapeImages,
    UnreadableImageError,
    load_segmentation,
    mask_folder,
    voc_images,
)
from ssl_blocks.data.pairs import voc_classes
from ssl_blocks.evaluation.dense import SegmentationTraining, train_segmentation
from ssl_blocks.evaluation.pyramid import FeaturePyramid
from ssl_blocks.evaluation.segmentation import SegmentationModel, UPerHead


def save_pair(folder: Path, stem: str, mask: np.ndarray, images: str = "images", masks: str = "masks") -> None:
    """A mask, and a picture in which class k has the grey value 20 k."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    (folder / masks).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(mask == 255, 0, mask * 20).astype(np.uint8)).save(
        folder / images / f"{stem}.jpg", quality=95
    )
    Image.fromarray(mask).save(folder / masks / f"{stem}.png")


def blocks(height: int = 40, width: int = 60, classes: int = 4, seed: int = 0) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, classes, (height // 10, width // 10))
    return cells.repeat(10, 0).repeat(10, 1).astype(np.uint8)


def make_folder(path: Path, num: int = 3) -> Path:
    for i in range(num):
        save_pair(path, f"pair{i}", blocks(seed=i))
    return path


def read(path: Path, **options: Any) -> ImageMaskFiles:
    return mask_folder(path, **({"size": (40, 60), "num_classes": 4} | options))


def test_images_and_masks_are_paired_by_stem_and_stay_aligned(tmp_path: Path) -> None:
    for size in ((40, 60), (20, 20), (60, 50)):
        data = read(make_folder(tmp_path), size=size)
        assert isinstance(data, MaskedImages)
        assert len(data) == 3
        for i in range(3):
            image, mask = data[i]
            assert image.shape == (3, *size)
            assert mask.shape == size
            assert set(mask.unique().tolist()) <= {0, 1, 2, 3}
            nearest = (image[0].float() / 20).round()
            assert (nearest == mask).float().mean() > 0.8  # all but blurred edges
    exact = read(tmp_path)
    assert torch.equal(exact[1][1], torch.from_numpy(blocks(seed=1)))
    assert not torch.equal(exact[1][1], exact[2][1])
    assert read(tmp_path, channels=1)[0][0].shape == (1, 40, 60)


def test_ignored_pixels_stay_ignored(tmp_path: Path) -> None:
    mask = blocks()
    mask[:5] = 255
    save_pair(tmp_path, "a", mask)
    assert (read(tmp_path)[0][1] == 255).sum() == 5 * 60


def test_classes_are_not_mixed_where_they_meet(tmp_path: Path) -> None:
    save_pair(tmp_path, "a", blocks(classes=2) * 9)
    assert read(tmp_path, size=(30, 50), num_classes=10)[0][1].unique().tolist() == [0, 9]


def test_palette_masks_hold_indices_not_colours(tmp_path: Path) -> None:
    save_pair(tmp_path, "a", blocks())
    picture = Image.fromarray(blocks()).convert("P")
    picture.putdata(blocks().flatten().tolist())
    picture.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    picture.save(tmp_path / "masks" / "a.png")
    assert torch.equal(read(tmp_path)[0][1], torch.from_numpy(blocks()))


def break_pair(path: Path, what: str) -> None:
    if what == "no mask":
        (path / "masks" / "pair1.png").unlink()
    elif what == "no image":
        (path / "images" / "pair1.jpg").unlink()
    elif what == "size":
        Image.fromarray(blocks(30, 60)).save(path / "masks" / "pair1.png")
    elif what == "colour":
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path / "masks" / "pair1.png")
    elif what == "twice":
        Image.fromarray(blocks()).save(path / "images" / "pair1.png")
    elif what == "damaged":
        (path / "masks" / "pair1.png").write_bytes(b"no picture")
    else:
        for file in (path / "images").iterdir():
            file.unlink()


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("no mask", ValueError, r"images/pair1\.jpg has no mask: expected \S*masks/pair1\.png"),
        ("no image", ValueError, r"masks/pair1\.png has no image of the same stem"),
        ("size", ValueError, r"masks/pair1\.png of 60x30 pixels must be as large as its image, 60x40"),
        ("colour", ValueError, r"masks/pair1\.png must hold one class index of 8 bits per pixel .* its mode is RGB"),
        ("twice", ValueError, r"images/pair1\.png and pair1\.jpg must not share one mask"),
        ("damaged", UnreadableImageError, r"masks/pair1\.png must be a readable mask"),
        ("empty", ValueError, r"images must hold images"),
    ],
)
def test_broken_folders_are_refused_at_once(tmp_path: Path, what: str, error: type[Exception], message: str) -> None:
    break_pair(make_folder(tmp_path), what)
    with pytest.raises(error, match=message):
        read(tmp_path)


def test_class_outside_of_the_range_is_named_when_read(tmp_path: Path) -> None:
    data = read(make_folder(tmp_path), num_classes=3)
    with pytest.raises(ValueError, match=r"pair0\.png holds class 3, but classes must be within 0..2, or 255"):
        data[0]


def test_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="must hold a folder 'masks'"):
        read(tmp_path)
    with pytest.raises(ValueError, match="images must be at least one, with one mask each, got 0 and 0"):
        ImageMaskFiles([], [], size=(4, 4), num_classes=2)


def make_voc(root: Path) -> Path:
    folder = root / "VOCdevkit" / "VOC2012"
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, stems in (("train", ("a", "b")), ("val", ("c",))):
        (lists / f"{part}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            mask = blocks(classes=21, seed=ord(stem))
            mask[0] = 255
            save_pair(folder, stem, mask, images="JPEGImages", masks="SegmentationClass")
    return root


def test_voc_is_read_as_torchvision_finds_it(tmp_path: Path) -> None:
    data = load_segmentation("voc", root=make_voc(tmp_path), image_size=(40, 60))
    assert (len(data.train), len(data.test), data.num_classes) == (2, 1, 21)
    assert data.class_names == voc_classes()
    image, mask = data.test[0]
    assert image.shape == (3, 40, 60)
    expected = blocks(classes=21, seed=ord("c"))
    expected[0] = 255
    assert torch.equal(mask, torch.from_numpy(expected))
    same = load_segmentation(f"voc:{tmp_path}", image_size=(40, 60)).test[0][1]
    assert torch.equal(same, mask)


def test_missing_voc(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must hold VOCdevkit/VOC2012 with the split 'val': unpack the archive"):
        voc_images(tmp_path, "val", size=(8, 8))
    make_voc(tmp_path)
    with pytest.raises(FileNotFoundError, match="with the split 'trainval'"):
        voc_images(tmp_path, "trainval", size=(8, 8))


def everything(data: MaskedImages) -> set[bytes]:
    return {data[i][1].numpy().tobytes() for i in range(len(data))}


def test_folder_without_splits_has_a_part_held_out(tmp_path: Path) -> None:
    make_folder(tmp_path, num=20)
    options: dict[str, Any] = {"image_size": (40, 60), "num_classes": 4}
    data = load_segmentation(f"maskfolder:{tmp_path}", **options)
    assert (len(data.train), len(data.test)) == (18, 2)
    assert not everything(data.train) & everything(data.test)
    again = load_segmentation(f"maskfolder:{tmp_path}", **options)
    assert everything(again.test) == everything(data.test)
    assert everything(load_segmentation(f"maskfolder:{tmp_path}", seed=1, **options).test) != everything(data.test)


@pytest.mark.parametrize("part", ["test", "val"])
def test_folder_with_splits(tmp_path: Path, part: str) -> None:
    make_folder(tmp_path / "train", num=3)
    make_folder(tmp_path / part, num=1)
    data = load_segmentation(f"maskfolder:{tmp_path}", image_size=20, num_classes=4)
    assert (len(data.train), len(data.test), data.class_names) == (3, 1, ("0", "1", "2", "3"))


def test_shapes_for_training_and_testing_differ() -> None:
    data = load_segmentation("shapes", image_size=16, channels=1)
    assert isinstance(data.train, ShapeImages)
    some: Tensor = data.train[0][0]
    assert some.shape == (1, 16, 16)
    assert not torch.equal(some, data.test[0][0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ade20k", {}, "name='ade20k' must be 'shapes', 'voc', 'voc:PATH' or 'maskfolder:PATH'"),
        ("shapes:x", {}, "name='shapes:x' must be"),
        ("maskfolder:", {"num_classes": 2}, "name='maskfolder:' must be"),
        ("maskfolder:x", {}, "num_classes=None must be given for name='maskfolder:x'"),
        ("shapes", {"num_classes": 2}, "num_classes=2 is for mask folders only"),
    ],
)
def test_wrong_names(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_segmentation(name, image_size=16, **options)


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    make_folder(tmp_path, num=1)
    with pytest.raises(ValueError, match="must hold at least two images"):
        load_segmentation(f"maskfolder:{tmp_path}", image_size=16, num_classes=4)


def test_images_of_more_than_8_bits_keep_their_values_and_are_trained_on(tmp_path: Path) -> None:
    for i in range(4):
        mask = blocks(seed=i)
        save_pair(tmp_path, f"pair{i}", mask)
        (tmp_path / "images" / f"pair{i}.jpg").unlink()
        np.save(tmp_path / "images" / f"pair{i}.npy", np.stack([mask * 1000.0 - 1000] * 5, axis=2))
    options = {"image_size": (40, 60), "num_classes": 4, "channels": 5, "value_range": (-1000.0, 3000.0)}
    data = load_segmentation(f"maskfolder:{tmp_path}", **options)
    image, mask = data.train[0]
    assert (image.shape, image.dtype) == ((5, 40, 60), torch.uint16)
    assert torch.equal((image[2].float() / 65535 * 4).round(), mask.float())
    with pytest.raises(UnreadableImageError, match="its pixels are float64, not uint8"):
        load_segmentation(f"maskfolder:{tmp_path}", **(options | {"value_range": None})).train[0]
    encoder = sb.encoders.timm_vit(
        "vit_tiny_patch16_224", image_size=(40, 60), patch_size=20, channels=5, embed_dim=16, depth=4, num_heads=1
    )
    statistics = {"mean": (0.5,) * 5, "std": (0.25,) * 5}
    model = SegmentationModel(FeaturePyramid(encoder, out_channels=8), UPerHead(in_channels=8, num_classes=4))
    losses = train_segmentation(model, data.train, training=SegmentationTraining(epochs=2, batch_size=2), **statistics)
    assert all(loss < 10 for loss in losses)
