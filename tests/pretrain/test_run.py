"""A whole run on the digits, small: folder, logs, weights, repeatability."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from rich.console import Console

import ssl_blocks as sb
from ssl_blocks.cli import load_config
from ssl_blocks.data import ImageData, ImageSplit, to_float
from ssl_blocks.pretrain import Run, RunConfig, figures
from ssl_blocks.pretrain.scoring import Sample
from ssl_blocks.recipes.randsac import RECIPE, assemble
from tests.pretrain.small import arguments

pytestmark = pytest.mark.process  # takes long


def options(folder: Path, *more: str) -> list[str]:
    return arguments(folder, "--name=randsac_digits", "--trainer.epochs=2", "--trainer.knn_every=1", *more)


def run(folder: Path, *more: str) -> Run:
    config = load_config(RECIPE, options(folder, *more))
    prepared = Run.prepare(config, assemble)
    prepared.fit()
    return prepared


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("runs"), "--trainer.score=true", "--trainer.figures=true")


def test_run_folder_holds_what_the_docs_promise(finished: Run) -> None:
    folder = finished.config.folder
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {
        "config.yaml",
        "metrics.csv",
        "results.json",
        "checkpoints/step-00000008.ckpt",
        "encoder/config.json",
        "encoder/model.safetensors",
        "figures/segments.png",
        "figures/reading_order.gif",
        "figures/reconstructions.png",
    } <= names
    assert any(n.startswith("tensorboard/events") for n in names)
    assert not any("incomplete" in n or n.endswith(".tmp") for n in names)


def test_resolved_config_makes_the_same_run_again(finished: Run) -> None:
    path = finished.config.folder / "config.yaml"
    assert yaml.safe_load(path.read_text())["trainer"]["epochs"] == 2
    again = load_config(RECIPE, [f"--preset={path}"])
    assert again == finished.config


def test_metrics_tell_loss_rate_and_knn(finished: Run) -> None:
    rows = list(csv.DictReader((finished.config.folder / "metrics.csv").read_text().splitlines()))
    losses = [float(r["loss"]) for r in rows if r["loss"]]
    assert len(losses) == 2
    assert all(0 < x < 10 for x in losses)
    assert sum(bool(r["knn"]) for r in rows) == 2
    assert all(0 <= float(r["knn"]) <= 1 for r in rows if r["knn"])


def test_results_compare_pixels_random_and_pretrained(finished: Run) -> None:
    results = json.loads((finished.config.folder / "results.json").read_text())
    assert [s["name"] for s in results["scores"]] == ["raw pixels", "random encoder", "pretrained encoder"]
    assert all(0 < s["knn"] <= 1 and 0 < s["fewshot"]["mean"] <= 1 for s in results["scores"])


def test_each_row_scores_its_own_encoder(finished: Run, tmp_path: Path) -> None:
    found = {s["name"]: s for s in json.loads((finished.config.folder / "results.json").read_text())["scores"]}
    fresh = Run.prepare(load_config(RECIPE, options(tmp_path)), assemble)
    expected = {
        name: Sample(fresh.data, autocast_dtype=None).of_encoder(objective, "cpu").scores(name, "cpu").as_dict()
        for name, objective in (
            ("random encoder", fresh.module.objective),
            ("pretrained encoder", finished.module.objective),
        )
    }
    for name, score in expected.items():
        assert found[name] == json.loads(json.dumps(score)), name
    assert len({(score["knn"], score["fewshot"]["mean"]) for score in found.values()}) == 3


def test_a_picture_that_fails_is_one_line_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        assert (tmp_path / "randsac_digits" / "results.json").is_file()
        assert (tmp_path / "randsac_digits" / "encoder" / "model.safetensors").is_file()
        raise IndexError("no colour\nis left")

    monkeypatch.setattr(figures, "write_figures", fail)
    folder = run(tmp_path, "--trainer.epochs=1", "--trainer.figures=true").config.folder
    printed = capsys.readouterr().out
    assert re.search(r"^warning: no pictures of \w+: IndexError: no colour is left$", printed, re.MULTILINE)
    assert "pretrained 1 epochs" in printed
    assert (folder / "figures" / "curves.png").is_file()
    assert "pretrained" in (folder / "encoder" / "README.md").read_text()


def test_what_cannot_be_read_is_passed_over_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(40):
        Image.new("L", (8, 8), 6 * i).save(tmp_path / "photos" / f"{i:02d}.png")
    (tmp_path / "photos" / "07.png").write_bytes(b"no image")
    photos = (f"--data.name=imagefolder:{tmp_path / 'photos'}", "--optimizer.batch_size=20", "--data.channels=1")
    with pytest.raises(ValueError, match=r"07\.png"):
        Run.prepare(load_config(RECIPE, options(tmp_path, *photos)), assemble)
    config = load_config(RECIPE, options(tmp_path, *photos, "--data.corrupt=skip"))
    prepared = Run.prepare(config, assemble)
    assert [path.name for path in prepared.data.skipped] == ["07.png"]
    assert len(prepared.data.train) == 39


def test_training_moved_the_weights(finished: Run, tmp_path: Path) -> None:
    config = load_config(RECIPE, options(tmp_path))
    fresh = Run.prepare(config, assemble).module.objective.state_dict()
    trained = finished.module.objective.state_dict()
    moved = {k for k in fresh if not torch.equal(fresh[k], trained[k])}
    assert {"reader.router.mix.weight", "head.weight", "encoder.module.patch_embed.proj.weight"} <= moved


def test_plain_timm_loads_the_encoder_with_identical_features(finished: Run) -> None:
    model = timm.create_model(f"local-dir:{finished.config.folder / 'encoder'}", pretrained=True).eval()
    encoder = finished.module.objective.export_encoder()
    encoder.module.eval()
    data = finished.data
    images = to_float(data.test.images, data.mean, data.std)
    with torch.no_grad():
        torch.testing.assert_close(model(images), encoder.features(images), rtol=1e-5, atol=1e-6)
    assert model.pretrained_cfg["mean"] == pytest.approx(data.mean)
    assert model.pretrained_cfg["std"] == pytest.approx(data.std)
    assert tuple(model.pretrained_cfg["input_size"]) == (1, 8, 8)


def test_export_notes_what_evaluation_needs(finished: Run) -> None:
    notes = json.loads((finished.config.folder / "encoder" / "config.json").read_text())["ssl_blocks"]
    assert notes["format_version"] == 1
    assert notes["patch"] == [2, 2]
    assert notes["channels"] == 1
    assert notes["crop"] == 0


def test_same_seed_same_weights_scored_or_not_and_other_seed_other_weights(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = run(tmp_path)
    folder, same = bare.config.folder, bare.module.objective.state_dict()
    fresh = [Run.prepare(load_config(RECIPE, options(tmp_path / seed, f"--seed={seed}")), assemble) for seed in "01"]
    zero, one = (run.module.objective.state_dict() for run in fresh)
    first = finished.module.objective.state_dict()
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert not torch.equal(zero["head.weight"], one["head.weight"])
    assert json.loads((folder / "results.json").read_text())["scores"] == []
    assert "## Scores" not in (folder / "encoder" / "README.md").read_text()
    assert not (folder / "figures").exists()
    assert not re.search("accuracy|no scores|warning", capsys.readouterr().out)


def test_run_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    config = load_config(RECIPE, options(tmp_path))
    Run.prepare(config, assemble)
    assert torch.equal(before, torch.get_rng_state())


def test_checkpoint_holds_every_weight_once_and_nothing_to_unpickle(finished: Run) -> None:
    saved = torch.load(finished.config.folder / "checkpoints" / "step-00000008.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {f"model.{name}" for name in finished.module.objective.state_dict()}


def test_precision_and_device_resolve(tmp_path: Path) -> None:
    config = load_config(RECIPE, options(tmp_path, "--trainer.precision=fp32"))
    assert Run.prepare(config, assemble).machine.autocast_dtype is None
    config = load_config(RECIPE, options(tmp_path, "--trainer.precision=bf16"))
    machine = Run.prepare(config, assemble).machine
    assert (machine.device, machine.autocast_dtype) == ("cpu", torch.bfloat16)


def test_unlabelled_images_train_but_are_not_scored(tmp_path: Path) -> None:
    prepared = Run.prepare(load_config(RECIPE, options(tmp_path)), assemble)
    whole = prepared.data
    labels = whole.train.labels.clone()
    labels[::2] = -1
    train = ImageSplit(whole.train.images, labels)
    prepared.data = prepared.module.data = replace(whole, train=train)
    sample = prepared._sample(prepared._images_for_scores(Console()))
    assert len(sample.train) == len(train) // 2
    assert sample.train.labels.min() == 0
    assert len(prepared.module.data.train) == len(train)


def test_without_labels_a_run_says_that_it_cannot_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "write_figures", lambda *_: [])
    (tmp_path / "photos").mkdir()
    for i in range(40):
        Image.new("L", (8, 8), 6 * i).save(tmp_path / "photos" / f"{i}.png")
    photos = (f"--data.name=imagefolder:{tmp_path / 'photos'}", "--optimizer.batch_size=20", "--data.channels=1")
    prepared = run(tmp_path, *photos, "--trainer.epochs=1", "--trainer.score=true", "--trainer.figures=true")
    printed = capsys.readouterr().out
    assert "trainer.knn_every has no effect" in printed
    assert "no scores" in printed
    assert (prepared.config.folder / "figures" / "curves.png").is_file()
    assert json.loads((prepared.config.folder / "results.json").read_text())["scores"] == []


class Stripes(RunConfig):
    """Brings data of its own: bright and dark stripes."""

    def load_data(self) -> ImageData:
        bright = torch.full((64, 1, 8, 8), 200, dtype=torch.uint8)
        bright[:, :, ::2] = 100
        split = ImageSplit(bright, torch.arange(64) % 2)
        return ImageData("stripes", split, split, ("a", "b"), (0.5,), (0.25,))


def test_data_of_ones_own_is_trained_on_and_looked_at_when_parts_are_made(tmp_path: Path) -> None:
    def with_levels(config: Stripes, data: ImageData) -> sb.SegmentPrediction:
        encoder = config.encoder.build(image_size=data.shape[1:], channels=data.shape.channels)
        tokenizer = sb.PatchTokenizer(image_size=data.shape[1:], patch_size=2, channels=data.shape.channels)
        objective = sb.simmim(encoder=encoder, tokenizer=tokenizer)
        objective.register_buffer("levels", data.train.images.unique())  # a codebook
        return objective

    sizes = {
        "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
        "optimizer": {"batch_size": 16, "warmup_epochs": 0},
    }
    trainer = {"epochs": 1, "device": "cpu", "score": False, "figures": False, "look_every": None}
    config = Stripes(name="stripes", output_dir=tmp_path, trainer=trainer, **sizes)
    run = Run.prepare(config, with_levels)
    assert run.module.objective.levels.tolist() == [100, 200]
    results = json.loads((run.fit() / "results.json").read_text())
    assert results["recipe"]["train_images"] == 64
