"""What a user adds: a protocol in one file, and an encoder that is asked under its mask."""

import json
from pathlib import Path

import pytest

from ssl_blocks.evaluate import main
from tests.evaluate.test_cli import CPU, by_name, results

CENTROID = '''
"""Nearest class means."""

import torch
from pydantic import Field

from ssl_blocks.engine.settings import StrictModel
from ssl_blocks.evaluation import Protocol, Score


class CentroidSettings(StrictModel):
    """Class means of frozen features."""

    shrink: float = Field(0.0, description="how far class means move to the mean of all, 0..1")


class Centroid(Protocol):
    """Nearest class mean."""

    name, Settings = "centroid", CentroidSettings
    heading = "class means"

    def check(self, subject, data):
        if self.settings.shrink > 1:
            raise ValueError(f"centroid.shrink={self.settings.shrink} must be at most 1")

    def score(self, subject, data):
        train, labels, test, truth = subject.features(data)
        means = torch.stack([train[labels == label].mean(0) for label in range(data.num_classes)])
        means = means + self.settings.shrink * (train.mean(0) - means)
        found = torch.cdist(test, means).argmin(1)
        return Score.accuracy(float((found == truth).float().mean()))


class Taken(Centroid):
    name = "knn"
'''

MASKED = """
import torch
from ssl_blocks import encoders

class Masked(encoders.TimmViT):
    def features(self, images, mask=None):
        index = torch.arange(self.grid.num_tokens, device=images.device).expand(len(images), -1)
        return self.encode(self.embed(images), index, mask).final[:, self.num_prefix :].mean(1)

def build():
    torch.manual_seed(0)
    vit = encoders.timm_vit(image_size=8, patch_size=2, channels=1, depth=4, embed_dim=32, num_heads=2)
    with torch.no_grad():  # so that attention matters, and no two rows are alike
        for name, weight in vit.module.named_parameters():
            if name.endswith(("qkv.weight", "proj.weight")):
                weight.mul_(24 if "qkv" in name else 8)
    return Masked(vit.module)
"""
DIGITS = ["--data.name=digits", "--data.max_train=200", "--data.max_test=100", "--output=scores.json", *CPU]


@pytest.fixture(autouse=True)
def _in_a_folder_of_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_protocols.py").write_text(CENTROID)
    (tmp_path / "own_encoders.py").write_text(MASKED)
    monkeypatch.chdir(tmp_path)


def test_a_protocol_of_ones_own_is_one_class(run: Path, capsys: pytest.CaptureFixture) -> None:
    word = "own_protocols:Centroid"
    assert main([word, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--centroid.shrink X" in text
    assert "centroid: class means of frozen features" in text
    assert "nearest class mean" in text
    for shrink in ("0", "1"):
        assert main(["knn", word, str(run), f"--centroid.shrink={shrink}", *CPU]) == 0
    first, second = results(run / "results.json")
    assert first["settings"]["centroid"] == {"shrink": 0.0}
    assert list(first["scores"][0]) == ["name", "knn", "centroid"]
    for name in ("raw pixels", "random encoder", "run"):  # with means in one place, all images are of the first class
        assert by_name(first)[name]["centroid"]["accuracy"] > by_name(second)[name]["centroid"]["accuracy"]
    shown = f"{by_name(second)['run']['centroid']['accuracy']:.1%}"
    assert "class means" in capsys.readouterr().out
    card = (run / "encoder" / "README.md").read_text()
    assert "| features | knn | centroid |" in card
    assert f"{shown} |" in card


def test_a_protocol_of_ones_own_refuses_like_the_others(run: Path, capsys: pytest.CaptureFixture) -> None:
    before = (run / "results.json").read_bytes()
    for arguments, message in (
        (["own_protocols:Centroid", "--centroid.shrink=2"], "centroid.shrink=2.0 must be at most 1"),
        (["own_protocols:Centroid", "--centroid.shrunk=2"], "did you mean --centroid.shrink?"),
        (
            ["own_protocols:Missing"],
            "'own_protocols:Missing' cannot be imported: module 'own_protocols' has no attribute",
        ),
        (["own_protocols:Taken"], "Taken.name='knn' is taken: give the protocol another name"),
        (["knn", "--centroid.shrink=1"], "--centroid.shrink=1 is no known option"),
    ):
        words = [arguments[0], str(run), *arguments[1:], *CPU]
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert (run / "results.json").read_bytes() == before


def test_an_encoder_is_asked_under_its_mask_and_without() -> None:
    assert main(["knn", "own_encoders:build", "--attention=both", "--knn.k=3", *DIGITS]) == 0
    assert main(["knn", "own_encoders:build", "--attention=causal", "--knn.k=3", "--pixels=false", *DIGITS]) == 0
    assert main(["knn", "own_encoders:build", "--knn.k=3", "--pixels=false", *DIGITS]) == 0
    both, causal, whole = (by_name(entry) for entry in json.loads(Path("scores.json").read_text())["evaluations"])
    assert list(both) == ["raw pixels", "own_encoders:build", "own_encoders:build, causal"]
    accuracies = [both[name]["knn"]["accuracy"] for name in list(both)[1:]]
    assert accuracies[0] != accuracies[1]
    assert [whole["own_encoders:build"]["knn"]["accuracy"]] == accuracies[:1]
    assert [causal["own_encoders:build, causal"]["knn"]["accuracy"]] == accuracies[1:]
