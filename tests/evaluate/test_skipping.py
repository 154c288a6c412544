"""What cannot be scored is said and skipped; the rest is scored, and pictures are drawn beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_blocks.evaluate import main
from tests.evaluate.test_cli import CPU, DEVICE, by_name, results

pytestmark = pytest.mark.process  # takes long


def folders(root: Path, counts: dict[str, dict[str, int]]) -> str:
    """Class folders of noisy grey images: split, class, how many."""
    noise = np.random.default_rng(0)
    for split, classes in counts.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                level = noise.integers(0, 60, (8, 8)) + 150 * (name == "b")
                Image.fromarray(level.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return f"--data.name=imagefolder:{root}"


def test_too_few_rows_skip_one_protocol_and_not_the_others(run: Path, capsys) -> None:
    options = ("--knn.k=201", "--fewshot.shots=5", "--random=false")
    assert main(["knn", "fewshot", str(run), *options, *CPU]) == 0
    shown = capsys.readouterr()
    assert "skipped: knn: knn.k=201 must be at most the number of training images, 200" in " ".join(shown.err.split())
    entry = results(run / "results.json")[0]
    assert all(set(row) == {"name", "fewshot"} for row in entry["scores"])
    assert [skipped["protocol"] for skipped in entry["skipped"]] == ["knn"]


def test_a_class_that_is_missing_in_train_skips_what_is_trained(run: Path, tmp_path: Path, capsys) -> None:
    data = folders(tmp_path / "set", {"train": {"a": 4, "b": 4}, "test": {"a": 3, "b": 3}})
    for file in (tmp_path / "set" / "train" / "b").iterdir():
        file.unlink()
    Image.new("L", (8, 8), 200).save(tmp_path / "set" / "train" / "b" / "only.png")
    options = ("--knn.k=3", "--fewshot.shots=2", "--random=false", "--pixels=false")
    assert main(["knn", "probe", "fewshot", str(run), data, *options, *CPU]) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert "skipped: fewshot: shots=2 must not exceed the labels of a class, but class 1 has 1" in error
    assert set(by_name(results(run / "results.json")[0])["run"]) == {"name", "knn", "probe"}


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"train": {"a": 30}, "test": {"a": 5}}, "has no labels of its training images"),
        ({"all": {}}, None),
    ],
)
def test_nothing_that_can_be_scored_is_exit_code_1(
    counts: dict, reason: str | None, run: Path, tmp_path, capsys
) -> None:
    before = (run / "results.json").read_bytes()
    data = folders(tmp_path / "set", counts) if reason else "--knn.k=500"
    assert main(["knn", str(run), data, *CPU]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: nothing can be scored: knn: ")
    assert (reason or "knn.k=500 must be at most") in error
    assert (run / "results.json").read_bytes() == before


def test_raw_pixels_have_no_places_to_look_at(run: Path, capsys) -> None:
    assert main(["attentive", str(run), "--attentive.epochs=1", "--random=false", *CPU]) == 0
    assert "skipped: raw pixels: attentive: RawPixels has no tokens" in " ".join(capsys.readouterr().err.split())
    assert list(by_name(results(run / "results.json")[0])) == ["run"]


FEW = ("--random=false", "--pixels=false", *DEVICE)


@pytest.fixture
def _small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NUM_SHOWN", "NUM_NEAREST"):
        monkeypatch.setattr(f"ssl_blocks.evaluate.pictures.{name}", 2)


@pytest.mark.usefixtures("_small_pictures")
def test_pictures_lie_beside_the_results_and_replace_none(run: Path, tmp_path: Path) -> None:
    assert main(["knn", str(run), *FEW]) == 0
    names = [f"evaluate_{name}.png" for name in ("neighbours", "features")]
    assert json.loads((run / "results.json").read_text())["evaluations"][0]["pictures"] == [
        str(run / "figures" / name) for name in names
    ]
    with Image.open(run / "figures" / names[0]) as picture:
        assert len(picture.convert("RGB").resize((64, 64)).getcolors(64 * 64)) > 20
    before = (run / "figures" / names[0]).read_bytes()
    assert main(["knn", str(run), *FEW]) == 0
    assert (run / "figures" / "evaluate_neighbours_2.png").is_file()
    assert (run / "figures" / names[0]).read_bytes() == before
    assert main(["knn", str(run), f"--output={tmp_path / 'mine.json'}", *FEW]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"mine_neighbours.png", "mine_features.png"}
    assert main(["knn", str(run), f"--output={tmp_path / 'bare.json'}", "--pictures=false", *FEW]) == 0
    assert not list(tmp_path.glob("bare*.png"))


@pytest.mark.usefixtures("_small_pictures")
def test_a_picture_that_fails_costs_no_score(run: Path, monkeypatch, capsys) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("ssl_blocks.evaluate.pictures.draw_neighbours", broken)
    assert main(["knn", str(run), *FEW]) == 0
    assert "warning: no picture of neighbours: RuntimeError: no ink" in " ".join(capsys.readouterr().err.split())
    assert (run / "figures" / "evaluate_features.png").is_file()
