"""What scores cost and look at: bounded, told, and made once."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ssl_blocks.data import ImageData, ImageSplit
from ssl_blocks.evaluation import Extractor
from ssl_blocks.pretrain import scoring
from ssl_blocks.pretrain.report import scores_table, stage
from ssl_blocks.pretrain.scoring import LEAST_SCORED, Sample, num_scored
from tests.pretrain.small import prepare


def sample(num_train: int = 60, num_test: int = 30) -> Sample:
    def split(num: int) -> ImageSplit:
        pixels = torch.randint(0, 256, (num, 1, 4, 4), generator=torch.Generator().manual_seed(num), dtype=torch.uint8)
        return ImageSplit(pixels, torch.arange(num) % 3)

    data = ImageData("noise", split(num_train), split(num_test), ("a", "b", "c"), (0.5,), (0.25,))
    return Sample(data, autocast_dtype=None)


@pytest.mark.parametrize(
    ("there", "bank", "seen", "expected"),
    [
        ((50_000, 10_000), None, 800 * 50_000, (50_000, 10_000)),
        ((50_000, 10_000), None, 3 * 50_000, (10_000, 5_000)),
        ((20_000, 10_000), None, 6 * 20_000, (8_000, 4_000)),
        ((5_000, 10_000), None, 5_000, (2_000, 1_000)),  # no less than that
        ((1_500, 297), None, 1_500, (1_500, 297)),
        ((1_000, 9_000), None, 50_000, (1_000, 4_000)),  # few training images leave more for the test
        ((50_000, 10_000), 20_000, 50_000, (20_000, 10_000)),
        ((50_000, 10_000), 60_000, 50_000, (50_000, 10_000)),
    ],
)
def test_scores_look_at_what_a_run_can_afford(there, bank, seen, expected) -> None:
    whole = sample()
    whole.train, whole.test = range(there[0]), range(there[1])
    found = num_scored(whole, bank, images_seen=seen)
    assert found == expected
    assert bank is not None or sum(found) <= max(LEAST_SCORED, seen / 10)


def test_a_part_is_drawn_once_and_class_by_class() -> None:
    whole = sample()
    part = whole.part(30, 100)
    assert part is whole.part(30, 30)
    assert part.train.labels.bincount().tolist() == [10, 10, 10]
    assert torch.equal(part.test.images, whole.test.images)
    assert whole.part(60, 30) is whole
    assert str(part) == "30 training and 30 test images"


def test_scores_say_what_they_were_computed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SHOTS", 1000)
    scores = sample().part(48, 30).of_pixels().scores("raw pixels", "cpu")
    assert (scores.num_train, scores.num_test) == (48, 30)
    table = scores_table("a", [scores])
    assert "30 test images by 48 training images" in table.title
    shown = [(column.header, *column.cells) for column in table.columns[1:]]
    assert shown == [("linear probe, 1000 labels a class", "-"), ("kNN", f"{scores.knn:.1%}")]


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many images were encoded at a time, raw pixels left out."""
    seen, extract = [], Extractor.__call__

    def counted(self: Extractor, images: torch.Tensor) -> torch.Tensor:
        if self.tokenizer is not None:
            seen.append(len(images))
        return extract(self, images)

    monkeypatch.setattr(Extractor, "__call__", counted)
    return seen


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--trainer.knn_every=1"], [128, 64] * 3),  # before training, and after each of two epochs
        (["--trainer.knn_every=1", "--trainer.knn_bank=96"], [128, 64, 96, 64, 96, 64, 128, 64]),
        (["--trainer.knn_every=None", "--trainer.score_bank=100"], [100, 64] * 2),
    ],
)
def test_what_knn_has_just_looked_at_is_not_looked_at_again(
    options: list[str],
    expected: list[int],
    extracted: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scoring, "SHOTS", 1000)  # so many are not there: no probe, which takes long
    run = prepare(tmp_path, "--trainer.epochs=2", "--trainer.score=true", *options)
    folder = run.fit()
    assert extracted == expected
    scores = json.loads((folder / "results.json").read_text())["scores"]
    assert {(score["num_train"], score["num_test"]) for score in scores} == {tuple(expected[:2])}
    again = Sample(run.data, autocast_dtype=None).part(*expected[:2])
    fresh = again.of_encoder(run.module.objective, "cpu").scores("pretrained encoder", "cpu")
    assert scores[2] == json.loads(json.dumps(fresh.as_dict()))
    printed = capsys.readouterr().out
    assert "loading the data: " in printed
    for name in ("raw pixels", "random encoder", "pretrained encoder"):
        assert f"scoring {name} on {expected[0]} training and 64 test images: " in printed


def test_a_stage_tells_its_time_once_it_is_done() -> None:
    text = io.StringIO()
    with stage(Console(file=text, width=80), "counting sheep"):
        assert text.getvalue() == ""
    assert text.getvalue().startswith("counting sheep: 0.")
    shown = io.StringIO()
    with stage(Console(file=shown, width=80, force_terminal=True), "counting sheep"):
        ends = time.monotonic() + 10
        while "counting sheep ..." not in shown.getvalue():
            assert time.monotonic() < ends
            time.sleep(0.01)
