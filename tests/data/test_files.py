"""Odd files become upright, opaque images of the channels asked for, or one error that names them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ssl_blocks.data import UnreadableImageError
from ssl_blocks.data.files import Box, read_crop, read_image


def scene(height: int = 60, width: int = 90) -> Image.Image:
    """Smooth colours, so that JPEG changes little."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([2 * x, 3 * y, x + y], axis=-1).astype(np.uint8))


def pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_whole_and_cropped(orientation: int, tmp_path: Path) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # is shown turned clockwise, so it is stored turned the other way
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = scene() if orientation == 1 else scene().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "a.png", channels=None), pixels(scene()))
    box = Box(10, 20, 30, 40)
    crop = read_crop(tmp_path / "a.png", lambda h, w: box, (30, 40), channels=None)
    assert torch.equal(crop, pixels(scene())[:, 10:40, 20:60])


def test_palettes_and_grey_and_cmyk_become_rgb(tmp_path: Path) -> None:
    few = Image.new("P", (4, 2))
    few.putpalette([255, 0, 0, 0, 255, 0])
    few.putdata([0, 1, 0, 1, 1, 0, 1, 0])
    few.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png", channels=3)[:, 0].tolist() == [[255, 0, 255, 0], [0, 255, 0, 255], [0] * 4]
    Image.new("L", (3, 3), 77).save(tmp_path / "l.png")
    assert read_image(tmp_path / "l.png", channels=None).unique().tolist() == [77]
    Image.new("CMYK", (3, 3), (0, 255, 255, 0)).save(tmp_path / "c.tif")
    assert read_image(tmp_path / "c.tif", channels=None)[:, 0, 0].tolist() == [255, 0, 0]


def test_what_is_transparent_is_white_whatever_lies_beneath(tmp_path: Path) -> None:
    see_through = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    see_through.putpixel((1, 0), (10, 20, 30, 0))
    see_through.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", channels=None)[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]
    see_through.convert("LA").save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png", channels=1)[0, 0, 1] == 255


def test_one_channel_is_grey_and_arrays_keep_theirs(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png", channels=1)[0], torch.from_numpy(np.array(scene().convert("L"))))
    cube = np.random.default_rng(0).integers(0, 256, (12, 10, 7), dtype=np.uint8)
    np.save(tmp_path / "cube.npy", cube)
    assert torch.equal(read_image(tmp_path / "cube.npy", channels=None), torch.from_numpy(cube).permute(2, 0, 1))
    crop = read_crop(tmp_path / "cube.npy", lambda h, w: Box(2, 1, 6, 8, mirror=True), (3, 4), channels=7)
    expected = TF.resize(torch.from_numpy(cube).permute(2, 0, 1)[:, 2:8, 1:9], [3, 4], antialias=True).flip(-1)
    assert torch.equal(crop, expected)
    np.save(tmp_path / "flat.npy", cube[..., 0])
    assert read_image(tmp_path / "flat.npy", channels=None).shape == (1, 12, 10)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_crop_equals_cropping_and_resizing_the_whole(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    scene().resize((600, 400)).save(file, quality=95)
    box = Box(32, 64, 320, 480)
    crop = read_crop(file, lambda h, w: box, (40, 60), channels=3)
    whole = read_image(file, channels=3)[:, 32:352, 64:544]
    expected = TF.resize(whole, [40, 60], antialias=True)
    # a JPEG is halved before it is decoded, by another filter
    assert (crop.float() - expected.float()).abs().mean() < (1.5 if suffix == "jpg" else 0.6)
    mirrored = read_crop(file, lambda h, w: box._replace(mirror=True), (40, 60), channels=3)
    assert torch.equal(mirrored, crop.flip(-1))


def test_the_chooser_hears_the_upright_size_and_a_small_box_is_not_decoded_coarsely(tmp_path: Path) -> None:
    scene().resize((600, 400)).save(tmp_path / "a.jpg", quality=95)
    heard = []
    crop = read_crop(tmp_path / "a.jpg", lambda h, w: heard.append((h, w)) or Box(0, 0, 32, 32), (32, 32), channels=3)
    assert heard == [(400, 600)]
    assert torch.equal(crop, read_image(tmp_path / "a.jpg", channels=3)[:, :32, :32])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"", "no known image format"),
        ("a.jpg", b"not an image", "no known image format"),
        ("gone.png", None, "No such file"),
        ("a.npy", b"\x93NUMPY", "EOF|read|magic|expected"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for read in (read_image, lambda file, channels: read_crop(file, lambda h, w: Box(0, 0, h, w), (2, 2), channels=3)):
        with pytest.raises(UnreadableImageError, match=f"{name} must be a readable image: .*({reason})"):
            read(tmp_path / name, channels=None)


def test_truncated_pickled_and_odd_arrays_are_refused(tmp_path: Path) -> None:
    scene().save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:800])
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "floats.npy", np.zeros((4, 4)))
    np.save(tmp_path / "seven.npy", np.zeros((4, 4, 7), dtype=np.uint8))
    for name, channels, reason in (
        ("half.jpg", None, "truncated|broken|Truncated"),
        ("objects.npy", None, "Python objects"),
        ("floats.npy", None, "float64, not uint8: data.value_range"),
        ("seven.npy", 3, "7 channels, expected channels=3"),
    ):
        with pytest.raises(UnreadableImageError, match=reason):
            read_image(tmp_path / name, channels=channels)
    with pytest.raises(ValueError, match=r"channels=7 must be 1 \(grey\) or 3 \(RGB\)"):
        read_image(tmp_path / "whole.jpg", channels=7)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [1000, 3000])  # far below the picture's 5,400 pixels, and less than half of them
def test_a_bomb_is_refused(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene().save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImageError, match=r"bomb.png must be a readable image: .*bomb"):
        read_image(tmp_path / "bomb.png", channels=None)
