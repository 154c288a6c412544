"""Pixels of other types than bytes keep their order and their levels, or are refused; floats are no bytes."""

import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ssl_blocks.data import ImageSplit, RandomResizedCropFlip, UnreadableImageError, load, to_float, train_loader
from ssl_blocks.data.augment import channel_statistics
from ssl_blocks.data.files import Box, read_crop, read_image
from ssl_blocks.data.resample import fit_images
from ssl_blocks.evaluation.mixing import TrainAugment

UINT16 = (0.0, 65535.0)


def ramp(low: float, high: float, dtype: str, count: int = 64) -> NDArray:
    return np.tile(np.linspace(low, high, count).astype(dtype), (8, 1))


def save_png16(pixels: NDArray, file: Path) -> None:
    """Write a 16-bit PNG of colours, which Pillow cannot; every row is stored as differences to the one above."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    above = np.concatenate((np.zeros_like(rows[:1]), rows[:-1]))
    lines = b"".join(b"\2" + row.tobytes() for row in rows - above)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


class TestReading:
    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bits_are_kept_whole(self, suffix: str, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 65536, (9, 7), dtype=np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
        read = read_image(tmp_path / f"a.{suffix}", channels=None, value_range=UINT16)
        assert read.dtype == torch.uint16
        assert np.array_equal(read[0].numpy(), pixels)

    @pytest.mark.parametrize("channels", [3, 4])
    def test_sixteen_bits_of_colour_are_kept_whole(self, channels: int, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 65536, (6, 5, channels), dtype=np.uint16)
        save_png16(pixels, tmp_path / "a.png")
        read = read_image(tmp_path / "a.png", channels=None, value_range=UINT16)
        assert np.array_equal(read.permute(1, 2, 0).numpy(), pixels)
        with pytest.raises(UnreadableImageError, match=r"uint16, not uint8: data.value_range"):
            read_image(tmp_path / "a.png", channels=None)

    @pytest.mark.parametrize("dtype", ["int32", "float32"])
    def test_hounsfield_units_rise_from_black_to_white(self, dtype: str, tmp_path: Path) -> None:
        Image.fromarray(ramp(-1000, 3000, dtype)).save(tmp_path / "ct.tif")
        row = read_image(tmp_path / "ct.tif", channels=1, value_range=(-1000.0, 3000.0))[0, 0].numpy().astype(int)
        assert (row[0], row[-1]) == (0, 65535)
        assert (np.diff(row) > 0).all()
        beyond = read_image(tmp_path / "ct.tif", channels=1, value_range=(0.0, 1000.0))[0, 0].numpy()
        assert (beyond[0], beyond[-1]) == (0, 65535)

    @pytest.mark.parametrize("dtype", ["int16", "uint32", "float64", "float16", "bool"])
    def test_arrays_of_any_type(self, dtype: str, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 2, (4, 6, 5)).astype(dtype)
        np.save(tmp_path / "a.npy", pixels)
        read = read_image(tmp_path / "a.npy", channels=5, value_range=(0.0, 1.0))
        assert np.array_equal(read.permute(1, 2, 0).numpy(), pixels.astype(np.uint16) * 65535)

    def test_one_bit_is_black_and_white(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.eye(3, dtype=bool))
        Image.fromarray(np.eye(3, dtype=bool)).save(tmp_path / "a.png")
        for file in ("a.npy", "a.png"):
            assert read_image(tmp_path / file, channels=1)[0].tolist() == (np.eye(3) * 255).astype(int).tolist()

    def test_a_crop_is_that_of_the_whole(self, tmp_path: Path) -> None:
        Image.fromarray(ramp(0, 4095, "uint16")).save(tmp_path / "a.png")
        box = Box(2, 10, 4, 32, mirror=True)
        crop = read_crop(tmp_path / "a.png", lambda h, w: box, (4, 32), channels=3, value_range=(0.0, 4095.0))
        whole = read_image(tmp_path / "a.png", channels=3, value_range=(0.0, 4095.0))
        assert (crop.numpy() == whole[:, 2:6, 10:42].numpy()[..., ::-1]).all()
        half = read_crop(tmp_path / "a.png", lambda h, w: box, (2, 16), channels=1, value_range=(0.0, 4095.0))
        assert len(half.unique()) == 16  # not rounded to bytes on the way

    def test_deep_pictures_are_turned_upright(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        read = read_image(tmp_path / "a.png", channels=1, value_range=UINT16)
        assert np.array_equal(read[0].numpy(), np.rot90(pixels, -1))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_no_number_is_refused(self, bad: float, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([[0.0, bad]]))
        with pytest.raises(UnreadableImageError, match=r"a.npy must be .* NaN or infinite"):
            read_image(tmp_path / "a.npy", channels=1, value_range=(0.0, 1.0))


class TestTiffs:
    def test_five_bands_and_pages_are_channels(self, tmp_path: Path) -> None:
        tifffile = pytest.importorskip("tifffile")
        bands = np.random.default_rng(0).integers(0, 4096, (8, 10, 5), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "last.tif", bands, photometric="minisblack", planarconfig="contig")
        tifffile.imwrite(tmp_path / "first.tif", bands.transpose(2, 0, 1), photometric="minisblack")
        for name in ("last.tif", "first.tif"):
            read = read_image(tmp_path / name, channels=5, value_range=UINT16)
            assert np.array_equal(read.permute(1, 2, 0).numpy(), bands), name

    def test_pages_are_asked_about(self, tmp_path: Path) -> None:
        pages = [Image.new("L", (6, 4), 10 * i) for i in range(4)]
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
        with pytest.raises(UnreadableImageError, match=r"a.tif .* 4 pages: channels=4 reads them as channels"):
            read_image(tmp_path / "a.tif", channels=None)
        assert read_image(tmp_path / "a.tif", channels=1).unique().tolist() == [0]

    def test_a_thumbnail_is_no_page(self, tmp_path: Path) -> None:
        small = Image.new("L", (3, 2))
        Image.new("L", (6, 4), 7).save(tmp_path / "a.tif", save_all=True, append_images=[small])
        assert read_image(tmp_path / "a.tif", channels=None).unique().tolist() == [7]


class TestLoading:
    def folder(self, tmp_path: Path, dtype: str, low: int, high: int, count: int = 20) -> str:
        for i in range(count):
            Image.fromarray(np.roll(ramp(low, high, dtype), i, axis=1)).save(tmp_path / f"{i:02}.tif")
        return f"imagefolder:{tmp_path}"

    @pytest.mark.parametrize("storage", ["memory", "stream"])
    def test_twelve_bits_keep_their_levels(self, storage: str, tmp_path: Path) -> None:
        name = self.folder(tmp_path, "uint16", 0, 4000)
        data = load(name, image_size=(8, 64), storage=storage)
        assert data.value_range == (0, 4095)
        assert any("pixels are uint16: 0 is black and 4095 is white" in remark for remark in data.remarks)
        images = data.train.read(torch.arange(20))
        assert (images.dtype, data.shape) == (torch.uint16, (1, 8, 64))
        assert len(images[0].unique()) == 64
        expected = torch.from_numpy(ramp(0, 4000, "uint16").astype(np.float64)) / 4095
        assert data.mean == pytest.approx([expected.mean().item()], abs=1e-4)
        floats = to_float(images, (0.0,), (1.0,))
        assert (floats[0, 0] - expected).abs().max() < 1e-4

    def test_streamed_batches_have_the_levels_too(self, tmp_path: Path) -> None:
        data = load(self.folder(tmp_path, "int32", -1000, 3000), image_size=(8, 64), storage="stream")
        assert data.value_range == (-1000, 3000)
        crop = RandomResizedCropFlip((8, 64), scale=(1.0, 1.0), ratio=(8.0, 8.0), flip=False)
        batch = next(iter(train_loader(data.train, seed=0, crop=crop, workers=0, batch_size=4)))
        assert batch.dtype == torch.uint16
        assert batch.float().amax() == 65535
        assert batch.float().amin() == 0

    def test_the_range_may_be_given(self, tmp_path: Path) -> None:
        data = load(self.folder(tmp_path, "int32", -1000, 3000), value_range=(-1000.0, 7000.0))
        assert data.train.images.float().amax() == 32768
        with pytest.raises(ValueError, match="must be None for images of 8 bits in memory"):
            load("digits", value_range=(0.0, 16.0))
        with pytest.raises(ValueError, match=r"value_range=\(5.0, 5.0\) must be \(lowest, highest\)"):
            load("digits", value_range=(5.0, 5.0))

    def test_bytes_among_deep_pictures_and_the_other_way_round(self, tmp_path: Path) -> None:
        Image.new("L", (8, 8), 9).save(tmp_path / "a.png")
        Image.fromarray(ramp(0, 4000, "uint16", 8)).save(tmp_path / "b.png")
        with pytest.raises(UnreadableImageError, match=r"b.png .* uint16, not uint8: data.value_range"):
            load(f"imagefolder:{tmp_path}", channels=1)

    def test_bytes_stay_bytes(self) -> None:
        data = load("digits")
        assert (data.train.images.dtype, data.value_range) == (torch.uint8, None)


class TestFloats:
    def test_are_not_divided_by_255_again(self) -> None:
        with pytest.raises(TypeError, match=r"torch.float32 must be uint8 or uint16|uint|UInt"):
            to_float(torch.rand(2, 3, 4, 4), (0.5,) * 3, (0.5,) * 3)

    def test_statistics_of_sixteen_bits(self) -> None:
        images = torch.tensor([0, 65535]).to(torch.uint16).reshape(2, 1, 1, 1)
        assert channel_statistics(images) == ((0.5,), (0.5,))
        assert ImageSplit(images, None).shape == (1, 1, 1)


class TestThinImages:
    def test_the_middle_is_cut_out_before_it_is_resized(self, tmp_path: Path) -> None:
        pixels = np.zeros((1, 20000, 3), np.uint8)
        pixels[:, 9000:11000] = 200
        Image.fromarray(pixels).save(tmp_path / "thin.png")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        image = read_image(tmp_path / "thin.png", channels=3, size=(224, 224))
        assert image.shape == (3, 224, 224)
        assert image.unique().tolist() == [200]
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200  # MiB

    @pytest.mark.parametrize("shape", [(3, 400), (400, 3), (5, 101)])
    def test_the_middle_is_that_of_the_whole(self, shape: tuple[int, int]) -> None:
        y, x = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
        image = (127 + 100 * torch.sin(x / 3 + y)).to(torch.uint8)[None]
        factor = 12 / min(shape)
        cover = [round(shape[0] * factor), round(shape[1] * factor)]
        whole = torch.nn.functional.interpolate(image[None].float(), cover, mode="bilinear", antialias=True)[0]
        top, left = round((cover[0] - 12) / 2), round((cover[1] - 12) / 2)
        expected = whole[:, top : top + 12, left : left + 12]
        assert (fit_images(image, (12, 12)).float() - expected).abs().max() < 10


class TestEvaluation:
    def test_crops_of_deep_images_stay_deep(self) -> None:
        images = torch.full((4, 5, 8, 8), 40000).to(torch.uint16)
        varied = TrainAugment((8, 8), mean=(0.5,) * 5, magnitude=None)(images, seed=0)
        assert (varied.dtype, varied.int().unique().tolist()) == (torch.uint16, [40000])
        with pytest.raises(ValueError, match="magnitude must be None for images of more than 8 bits"):
            TrainAugment((8, 8), mean=(0.5,) * 3)(images[:, :3], seed=0)
