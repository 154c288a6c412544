"""Training that goes on, in folders, and trained models that load again."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_blocks import PatchTokenizer
from ssl_blocks.data import to_float
from ssl_blocks.engine import RunStopped, Task
from ssl_blocks.engine.checkpoints import list_checkpoints, read_checkpoint
from ssl_blocks.evaluation import (
    Classifier,
    FinetuneSettings,
    SegmentationTraining,
    evaluate_segmentation,
    load_classifier,
    load_segmenter,
    save_classifier,
    save_segmenter,
)
from ssl_blocks.evaluation.dense import SegmentationTask
from ssl_blocks.evaluation.finetune import FinetuneTask
from tests.evaluation import test_dense as dense
from tests.evaluation.test_finetune import STATISTICS, bright_and_dark, finetuned, replace, tiny
from tests.evaluation.test_layers import Plain

pytestmark = pytest.mark.process  # takes long

TRAIN, TEST = bright_and_dark(16, 0), bright_and_dark(8, 1)
SETTINGS = FinetuneSettings(
    base_lr=0.1, batch_size=8, accumulate=2, epochs=2, warmup_epochs=1, drop_path=0.3, crop_scale=(0.5, 1.0)
)
TRAINING = SegmentationTraining(epochs=2, batch_size=2, lr=3e-3)


def finetune(**options: Any) -> Any:
    return finetuned(tiny(), TRAIN, TEST, **{"settings": SETTINGS, **STATISTICS, **options})


def segment(**options: Any) -> Any:
    return evaluate_segmentation(
        dense.fed(dense.make_encoder(drop_path_rate=0.2)),
        dense.make_data(4, 2),
        **{"width": 4, "training": TRAINING, **options},
    )


def stop_at(step: int, task: type[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def after_step(self: Task) -> None:
        done.append(1)
        if len(done) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(task, "after_step", after_step)


def state(folder: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(list_checkpoints(folder)[0])
    del checkpoint["ssl_blocks"]["seconds"]
    moments = checkpoint["optimizer_states"][0]["state"]
    return {"marks": checkpoint["ssl_blocks"], "weights": checkpoint["state_dict"], "moments": moments}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(
    ("run", "task", "at_step"),
    [(finetune, FinetuneTask, 3), (segment, SegmentationTask, 3)],
    ids=["finetune", "segment"],
)
def test_interrupted_training_ends_in_the_same_bits(
    run: Callable[..., Any], task: type[Task], at_step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(folder=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(at_step, task, patch)
        with pytest.raises(RunStopped, match=rf"SIGTERM after step {at_step}, saved as .*; go on with resume=True"):
            run(folder=tmp_path / "cut")
    assert not (tmp_path / "cut" / "model.json").exists()
    resumed = run(folder=tmp_path / "cut", resume=True)
    assert same(state(tmp_path / "whole"), state(tmp_path / "cut"))
    for name in ("metrics.csv", "head.safetensors", "encoder/model.safetensors", "model.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name
    scores = [getattr(result, "score", result) for result in (whole, resumed)]
    assert scores[0] == scores[1]
    # what is done is scored again, and not trained
    with monkeypatch.context() as patch:
        patch.setattr(task, "loss", None)
        again = run(folder=tmp_path / "cut", resume=True)
    assert getattr(again, "score", again) == scores[0]
    more = {"seed": 1}
    with pytest.raises(ValueError, match=r"must be gone on with as it began, but now seed=1 \(the run has 0\)"):
        run(folder=tmp_path / "cut", resume=True, **more)


@pytest.mark.parametrize("fresh_norm", [False, True])
@pytest.mark.parametrize("cut", [None, PatchTokenizer.from_grid(image_size=9, grid=2)], ids=["whole", "cut"])
def test_a_classifier_loads_again(fresh_norm: bool, cut: PatchTokenizer | None, tmp_path: Path) -> None:
    size = 8 if cut is None else 9
    model = Classifier(tiny(), num_classes=3, fresh_norm=fresh_norm, tokenizer=cut).eval()
    for value in model.parameters():  # none as they began
        value.data += 0.1 * torch.randn(value.shape)
    save_classifier(model, tmp_path, **STATISTICS)
    loaded = load_classifier(tmp_path)
    assert (loaded.mean, loaded.std) == (STATISTICS["mean"], STATISTICS["std"])
    assert not loaded.model.training
    images = to_float(bright_and_dark(16, 0, size=size).images, loaded.mean, loaded.std)
    with torch.no_grad():
        logits = model(images)
        assert torch.equal(loaded.model(images), logits)
    assert float(logits.std()) > 0.01
    assert logits.shape == (16, 3)
    # positions were trained, which this encoder was built without
    assert not torch.equal(loaded.model.backbone.pos_embed, tiny().module.pos_embed)


@pytest.mark.parametrize("freeze", [False, True])
def test_a_segmentation_model_loads_again(freeze: bool, tmp_path: Path) -> None:
    model, data = dense.make_model(freeze=freeze), dense.make_data()
    for value in model.parameters():
        value.data += 0.1 * torch.randn(value.shape)
    save_segmenter(model, tmp_path, **dense.STATISTICS)
    loaded = load_segmenter(tmp_path)
    images = to_float(torch.stack([data.test[i][0] for i in range(2)]), loaded.mean, loaded.std)
    with torch.no_grad():
        logits = model.eval()(images)
        assert torch.equal(loaded.model(images), logits)
    assert float(logits.std()) > 0.01
    assert loaded.model.pyramid.freeze is freeze


# --- errors -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_saved_is_refused_before_it_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FinetuneTask, "loss", None)
    settings = replace(SETTINGS, layer_decay=1.0, drop_path=0.0)
    with pytest.raises(TypeError, match="to be exported, got Plain"):
        finetuned(Plain(), TRAIN, TEST, settings=settings, folder=tmp_path / "run", **STATISTICS)
    assert not (tmp_path / "run").exists()


def test_folders_that_hold_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold a trained model, but model\.json is not in it"):
        load_classifier(tmp_path)
    save_classifier(Classifier(tiny(), num_classes=2), tmp_path / "a", **STATISTICS)
    with pytest.raises(ValueError, match="must be of a SegmentationModel, format 1, but is Classifier, 1"):
        load_segmenter(tmp_path / "a")
    shutil.copy(tmp_path / "a" / "encoder" / "model.safetensors", tmp_path / "a" / "head.safetensors")
    with pytest.raises(ValueError, match=r"head\.safetensors does not fit model\.json"):
        load_classifier(tmp_path / "a")
    (tmp_path / "a" / "head.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"head\.safetensors holds no weights that fit"):
        load_classifier(tmp_path / "a")
    (tmp_path / "a" / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.json is no JSON"):
        load_classifier(tmp_path / "a")
