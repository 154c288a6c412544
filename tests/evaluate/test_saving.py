"""Protocols that train keep their models, go on where they were stopped, and share work between processes."""

import json
from pathlib import Path

import pytest
import torch

from ssl_blocks import encoders
from ssl_blocks.data import load, to_float
from ssl_blocks.evaluate import main
from ssl_blocks.evaluation import load_classifier, load_segmenter
from tests.evaluate.test_cli import CPU, HALF

pytestmark = pytest.mark.process  # takes long

FEW = ["--data.max_train=60", "--data.max_test=40", *CPU]
TUNE = ["--finetune.epochs=3", "--finetune.warmup_epochs=0.5", "--finetune.batch_size=20", "--finetune.base_lr=5e-2"]
TUNE += ["--finetune.mixup=0", "--finetune.cutmix=0", "--finetune.magnitude=None", "--finetune.layer_decay=1"]


def last_scores(run: Path) -> dict[str, dict]:
    entries = json.loads((run / "results.json").read_text())["evaluations"]
    return {row["name"]: row for row in entries[-1]["scores"]}


def judged(folder: Path) -> tuple[torch.Tensor, float]:
    """Logits of the test images by the model that was kept, and its accuracy."""
    kept = load_classifier(folder)
    test = load("digits", max_train=60, max_test=40).test
    with torch.no_grad():
        logits = kept.model(to_float(test.read(torch.arange(len(test))), kept.mean, kept.std))
    return logits, (logits.argmax(1) == test.labels).float().mean().item()


def test_a_fine_tuned_model_is_kept_and_scores_as_the_table_says(run: Path, capsys: pytest.CaptureFixture) -> None:
    kept = run / "tuned"
    options = [*FEW, *TUNE, f"--finetune.save={kept}", "--finetune.from_random=true"]
    assert main(["finetune", str(run), *options]) == 0
    scores = last_scores(run)
    (ours, share), (theirs, random) = judged(kept), judged(kept / "random")
    assert not torch.allclose(ours, theirs, atol=1e-3)
    assert share == pytest.approx(scores[_trained(scores)]["finetune"]["accuracy"])
    assert random == pytest.approx(scores["random encoder"]["finetune"]["accuracy"])
    capsys.readouterr()

    assert main(["finetune", str(run), *options]) == 2
    said = capsys.readouterr().err
    assert "holds checkpoints already: give another, or resume=true" in said
    assert said.count("\n") == 1
    before = json.loads((run / "results.json").read_text())["evaluations"]
    assert main(["finetune", str(run), *options, "--finetune.resume=true"]) == 0  # finished: scored again
    after = json.loads((run / "results.json").read_text())["evaluations"]
    assert len(after) == len(before) + 1
    assert [row["finetune"]["accuracy"] for row in after[-1]["scores"]] == [
        row["finetune"]["accuracy"] for row in before[-1]["scores"]
    ]


def _trained(scores: dict[str, dict]) -> str:
    return next(name for name in scores if name != "random encoder")


def test_a_trained_segmenter_is_kept(tmp_path: Path) -> None:
    encoder = encoders.timm_vit(image_size=16, patch_size=4, depth=4, embed_dim=16, num_heads=2)
    run, kept = tmp_path / "encoder", tmp_path / "segmenter"
    encoders.export_encoder(encoder, run, tokenizer=None, mean=HALF, std=HALF)
    small = ["--segment.epochs=1", "--segment.width=4", "--segment.batch_size=32"]
    assert main(["segment", str(run), *small, f"--segment.save={kept}", *CPU]) == 0
    model = load_segmenter(kept).model
    assert model(torch.zeros(1, 3, 16, 16)).shape[0] == 1


def test_going_on_needs_a_folder(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["finetune", str(run), *FEW, "--finetune.resume=true"]) == 2
    assert "resume=true goes on in the folder of save, which is not given" in capsys.readouterr().err
