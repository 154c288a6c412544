"""Features of images in a file, each row with its file; whole or not at all, and over nothing that is there."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from ssl_blocks.__main__ import main
from ssl_blocks.data import load
from ssl_blocks.data.files import read_image
from ssl_blocks.deploy import embed
from ssl_blocks.encoders import export_encoder, load_encoder, timm_vit
from ssl_blocks.evaluation import Extractor

pytestmark = pytest.mark.process  # takes long

CPU = {"device": "cpu", "precision": "fp32"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def extractor(run: Path) -> Extractor:
    notes = json.loads((run / "encoder" / "config.json").read_text())["ssl_blocks"]
    return Extractor(load_encoder(run / "encoder"), tuple(notes["mean"]), tuple(notes["std"]))


def test_every_image_has_its_row(run: Path, photos: Path, tmp_path: Path) -> None:
    done = embed(run, photos, tmp_path / "f.npy", batch_size=2, corrupt="skip", **CPU)
    found, beside = np.load(tmp_path / "f.npy"), rows(tmp_path / "f.csv")
    names = ["a.png", "b.png", "d.png", "deep/c.jpg", "deep/er/a.png"]
    assert [row["file"] for row in beside] == [str(photos / name) for name in names]
    assert [row["row"] for row in beside] == list("01234")
    assert done.skipped == (str(photos / "broken.png"),)
    assert (done.num_images, done.dim) == found.shape == (5, 16)
    assert found.dtype == np.float32
    for row, vector in zip(beside, found, strict=True):
        image = read_image(Path(row["file"]), channels=1, size=(8, 8))
        torch.testing.assert_close(torch.from_numpy(vector), extractor(run)(image[None])[0])
    assert any("passed over 1 .txt" in remark for remark in done.remarks)


def test_parquet_holds_the_same_with_splits_and_labels(run: Path, tmp_path: Path) -> None:
    embed(run, "digits", tmp_path / "f.parquet", batch_size=500, **CPU)
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["file", "split", "label", "features"]
    data = load("digits")
    found = torch.tensor(np.stack(table["features"].to_numpy()))
    assert data.test is not None
    wanted = torch.cat([extractor(run)(split.images) for split in (data.train, data.test)])
    torch.testing.assert_close(found, wanted)
    labels = torch.cat([data.train.labels, data.test.labels]).tolist()
    assert table["label"].to_pylist() == list(map(str, labels))
    assert set(table["split"].to_pylist()[:1297]) == {"train"}
    notes = json.loads(table.schema.metadata[b"ssl_blocks"])
    assert notes["pooling"] == "mean of normalised patch tokens"
    assert notes["image_size"] == [8, 8]


def test_layers_and_sizes_are_options(photos: Path, tmp_path: Path) -> None:
    only = photos / "a.png"
    encoder = timm_vit(image_size=8, patch_size=4, channels=1, depth=2, embed_dim=16, num_heads=2)
    deep = export_encoder(encoder, tmp_path / "deep", tokenizer=None, mean=(0.5,), std=(0.5,))
    plain = embed(deep, only, tmp_path / "a.npy", **CPU)
    deeper = embed(deep, only, tmp_path / "b.npy", layers=2, **CPU)
    larger = embed(deep, only, tmp_path / "c.npy", image_size=16, **CPU)
    assert (plain.dim, deeper.dim, larger.dim) == (16, 32, 16)
    one, two, three = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    np.testing.assert_allclose(two[:, 16:], one, rtol=1e-5)
    assert not np.allclose(one, three)


def test_images_of_more_than_8_bits_are_fed_as_in_training(tmp_path: Path) -> None:
    """Half as bright is half as bright, although it is the brightest of its folder."""
    torch.manual_seed(0)
    encoder = timm_vit(image_size=8, patch_size=4, channels=1, depth=1, embed_dim=8, num_heads=2)
    half = {"mean": (0.5,), "std": (0.5,)}
    export_encoder(encoder, tmp_path / "deep", tokenizer=None, value_range=(0.0, 4095.0), **half)
    pixels = np.random.default_rng(0).integers(0, 2048, (8, 8)).astype(np.uint16)
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "a.npy", pixels)
    done = embed(tmp_path / "deep", tmp_path / "set", tmp_path / "f.npy", **CPU)
    image = torch.from_numpy(pixels.astype(np.float32))[None, None] / 4095
    with torch.no_grad():
        wanted = encoder.eval().features((image - 0.5) / 0.5)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "f.npy")), wanted, rtol=1e-3, atol=1e-3)
    assert any("4095 is white, as in training" in remark for remark in done.remarks)
    export_encoder(encoder, tmp_path / "flat", tokenizer=None, **half)
    measured = embed(tmp_path / "flat", tmp_path / "set", tmp_path / "m.npy", **CPU)
    assert not np.allclose(np.load(tmp_path / "m.npy"), wanted.numpy(), atol=1e-2)
    assert any("data.value_range" in remark for remark in measured.remarks)


@pytest.mark.parametrize("name", ["f.npy", "f.csv"])
def test_nothing_is_replaced_unless_told(name: str, run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{name}' is there, and stays as it is: give another, or --overwrite"):
        embed(run, photos / "a.png", tmp_path / "f.npy", **CPU)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    embed(run, photos / "a.png", tmp_path / "f.npy", overwrite=True, **CPU)
    assert len(np.load(tmp_path / "f.npy")) == len(rows(tmp_path / "f.csv")) == 1


def test_an_error_amid_the_images_leaves_no_file(run: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("f.npy", "f.parquet"):
        with pytest.raises(ValueError, match=r"broken.png must be a readable image: no known image format"):
            embed(run, photos, tmp_path / name, batch_size=1, **CPU)
        assert list(tmp_path.iterdir()) == []


def test_features_that_are_not_finite_name_the_file(run: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    features = type(load_encoder(run / "encoder")).features
    monkeypatch.setattr(type(load_encoder(run / "encoder")), "features", lambda self, x: features(self, x) / 0)
    with pytest.raises(ValueError, match=r"a.png: the encoder must return finite features"):
        embed(run, photos / "a.png", tmp_path / "f.npy", **CPU)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    words = ["embed", str(run), str(photos), "-o", str(tmp_path / "f.npy"), "--corrupt", "skip", "--device=cpu"]
    assert main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == f"wrote {tmp_path / 'f.npy'}: 5 images, 16 features each; rows in {tmp_path / 'f.csv'}"
    assert f"1 unreadable images were skipped, {photos / 'broken.png'} first" in shown
    assert main(words) == 2
    assert main([*words, "--overwrite"]) == 0
