"""Classes and masks of images by trained models."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_blocks.__main__ import main
from ssl_blocks.data import to_float
from ssl_blocks.data.files import read_image
from ssl_blocks.deploy import predict
from ssl_blocks.evaluation import load_classifier, load_segmenter
from tests.deploy.conftest import NAMES

pytestmark = pytest.mark.process  # takes long

CPU = {"device": "cpu", "precision": "fp32"}


@torch.no_grad()
def test_classes_are_the_likeliest_by_name(classifier: Path, photos: Path, tmp_path: Path) -> None:
    done = predict(classifier, photos, tmp_path / "p.csv", top_k=3, corrupt="skip", batch_size=2, **CPU)
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert done.num_images == len(rows) == 5
    assert list(rows[0]) == ["file", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    loaded = load_classifier(classifier)
    assert loaded.class_names == NAMES
    for row in rows:
        image = read_image(Path(row["file"]), channels=1, size=(8, 8))[None]
        shares, classes = loaded.model(to_float(image, loaded.mean, loaded.std)).softmax(1)[0].topk(3)
        assert [row["class"], row["class_2"], row["class_3"]] == [NAMES[label] for label in classes.tolist()]
        said = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        assert said == pytest.approx(shares.tolist(), rel=1e-4)
    assert len({row["probability"] for row in rows}) == 5  # else any image would do


@torch.no_grad()
def test_masks_lie_on_the_whole_image(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(3).integers(0, 256, (16, 32)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "wide.png")
    done = predict(segmenter, tmp_path / "wide.png", tmp_path / "masks", **CPU)
    assert done.class_names == ("ground", "cell", "wall")
    loaded = load_segmenter(segmenter)
    seen = read_image(tmp_path / "wide.png", channels=1, size=(16, 16))[None]
    wanted = loaded.model(to_float(seen, loaded.mean, loaded.std)).argmax(1)[0].numpy()
    with Image.open(tmp_path / "masks" / "wide.png") as mask:
        found = np.array(mask)
        assert mask.mode == "P"
    np.testing.assert_array_equal(found[:, 8:24], wanted)
    assert len(np.unique(wanted)) > 1
    assert set(np.unique(found[:, :8])) == set(np.unique(found[:, 24:])) == {255}
    named = (tmp_path / "masks" / "classes.csv").read_text().splitlines()
    assert named == ["class,name", "0,ground", "1,cell", "2,wall"]


def test_files_of_one_name_get_masks_of_several(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    predict(segmenter, photos, tmp_path / "masks", corrupt="skip", **CPU)
    lines = (tmp_path / "masks" / "masks.csv").read_text().splitlines()[1:]
    masks = dict(line.split(",") for line in lines)
    assert masks[str(photos / "a.png")] == "a.png"
    assert masks[str(photos / "deep/er/a.png")] == "er_a.png"
    assert len(set(masks.values())) == 5
    for file, mask in masks.items():
        with Image.open(file) as image, Image.open(tmp_path / "masks" / mask) as shown:
            assert image.size == shown.size
    with pytest.raises(FileExistsError, match="masks' must be a folder for masks, new or empty, but is not empty"):
        predict(segmenter, photos, tmp_path / "masks", corrupt="skip", **CPU)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "PHOTOS", "-o", "p.txt"], "output='p.txt' must end in .csv"),
        (["MODEL", "PHOTOS", "-o", "p.csv", "--top_k=11"], "top_k=11 must be at most the 10 classes of the model"),
        (["MODEL", "nowhere", "-o", "p.csv"], "name='nowhere' is no folder and no file that is there, and no data set"),
        (["RUN", "PHOTOS", "-o", "p.csv"], "must be a folder with a trained model (model.json)"),
        (["MODEL", "-o", "p.csv"], "predict takes MODEL IMAGES, got"),
        (["MODEL", "PHOTOS"], "predict needs --output FILE"),
        (["MODEL", "PHOTOS", "-o", "p.csv", "--topk=2"], "--topk=2 is no known option; did you mean --top_k?"),
        (["MODEL", "PHOTOS", "-o"], "--output needs a value"),
        (["MODEL", "PHOTOS", "-o", "p.csv", "--batch_size=0"], "batch_size=0 must be greater than 0"),
    ],
)
def test_wrong_words_are_one_line(words, message, run, classifier, photos, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": str(classifier), "RUN": str(run), "PHOTOS": str(photos)}
    assert main(["predict", *(places.get(word, word) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []
