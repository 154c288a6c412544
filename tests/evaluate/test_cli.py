"""The command: what it finds out, what it leaves behind, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ssl_blocks import PatchTokenizer, encoders
from ssl_blocks.data import load
from ssl_blocks.evaluate import EvaluateConfig, main
from ssl_blocks.evaluate.cli import configure, help_text, make_entry, split_arguments
from ssl_blocks.evaluate.config import FinetuneConfig, ProbeConfig, SegmentConfig
from ssl_blocks.evaluation import (
    FinetuneSettings,
    LinearSettings,
    SegmentationTraining,
    encoder_features,
    fewshot_probe,
    finetune_encoder,
    knn_accuracy,
    linear_probe,
    logistic_probe,
    raw_pixels,
)
from ssl_blocks.training import export_encoder
from ssl_blocks.training.arguments import list_options

CPU = ("--device=cpu", "--precision=fp32")
HALF = (0.5, 0.5, 0.5)
ROOT = Path(__file__).parents[2]


def results(path: Path) -> list[dict]:
    return json.loads(path.read_text())["evaluations"]


def by_name(entry: dict) -> dict[str, dict]:
    return {row["name"]: row for row in entry["scores"]}


def test_scores_are_those_of_the_protocols_called_by_hand(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["knn", "probe", "fewshot", str(run), "--probe.epochs=20", "--fewshot.seeds=3,4", *CPU]) == 0
    scores = by_name(results(run / "results.json")[0])
    assert list(scores) == ["raw pixels", "random encoder", "run"]
    data = load("digits", max_train=200, max_test=50)
    known = json.loads((run / "encoder" / "config.json").read_text())["ssl_blocks"]
    statistics = {"mean": known["mean"], "std": known["std"]}
    encoder = encoders.load_encoder(run / "encoder")
    settings = LinearSettings.for_images(200, epochs=20)
    for name, encode in (
        ("raw pixels", lambda images: raw_pixels(images, **statistics)),
        ("run", lambda images: encoder_features(encoder, images, **statistics)),
    ):
        assert data.test is not None
        arguments = (
            encode(data.train.images),
            data.train.labels,
            encode(data.test.images),
            data.test.labels,
        )
        assert scores[name]["knn"]["accuracy"] == pytest.approx(knn_accuracy(*arguments))
        assert scores[name]["probe"]["accuracy"] == pytest.approx(linear_probe(*arguments, settings=settings).accuracy)
        assert scores[name]["fewshot"]["mean"] == pytest.approx(fewshot_probe(*arguments, seeds=(3, 4)).mean)
    table = capsys.readouterr().out
    for text in ("raw pixels", "random encoder", f"{scores['run']['knn']['accuracy']:.1%}", "10 labels"):
        assert text in table


def test_the_random_encoder_is_the_one_that_the_run_began_with(run: Path) -> None:
    before = json.loads((run / "results.json").read_text())["scores"]
    assert main(["knn", "fewshot", str(run), *CPU]) == 0
    scores = by_name(results(run / "results.json")[0])
    names = {"raw pixels": "raw pixels", "random encoder": "random encoder", "pretrained encoder": "run"}
    for row in before:
        assert scores[names[row["name"]]]["knn"]["accuracy"] == pytest.approx(row["knn"], abs=0.021), row["name"]
        assert scores[names[row["name"]]]["fewshot"]["mean"] == pytest.approx(row["fewshot"]["mean"], abs=0.03)


def test_entries_are_added_and_nothing_of_the_run_is_lost(run: Path) -> None:
    before = json.loads((run / "results.json").read_text())
    weights = (run / "encoder" / "model.safetensors").read_bytes()
    assert main(["knn", str(run), "--knn.k=5", *CPU]) == 0
    assert main(["fewshot", str(run / "encoder"), "--pixels=false", "--fewshot.shots=2", *CPU]) == 0
    after = json.loads((run / "results.json").read_text())
    assert {name: value for name, value in after.items() if name != "evaluations"} == before
    first, second = after["evaluations"]
    assert first["settings"] == {"seed": 0, "knn": {"k": 5, "temperature": 0.07}}
    assert second["settings"]["fewshot"]["shots"] == 2
    assert [row["name"] for row in second["scores"]] == ["random encoder", "run"]
    assert first["data"] == {"name": "digits", "train": 200, "test": 50}
    assert (run / "encoder" / "model.safetensors").read_bytes() == weights
    assert encoders.load_encoder(run / "encoder") is not None


def test_the_model_card_shows_every_evaluation(run: Path) -> None:
    card = run / "encoder" / "README.md"
    before = card.read_text()
    assert main(["knn", str(run), *CPU]) == 0
    assert main(["knn", str(run), "--knn.k=3", *CPU]) == 0
    text, scores = card.read_text(), by_name(results(run / "results.json")[1])
    assert "`evaluate.py knn" in text
    assert "`evaluate.py knn" not in before
    assert f"| run | {scores['run']['knn']['accuracy']:.1%} |" in text
    assert text.count("`evaluate.py knn") == 1  # the latest of its kind
    assert before.partition("## Load")[0].strip() in text


def test_finetuning_and_segmentation_run_as_a_user_would_call_them(run: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--finetune.epochs=2", "--finetune.warmup_epochs=1", "--finetune.batch_size=32"]
    few = ["--fewshot.finetune=true", "--fewshot.shots=4", "--fewshot.seeds=0"]
    assert main(["finetune", "fewshot", str(run), "--finetune.from_random=true", *options, *few, *CPU]) == 0
    scores = by_name(results(run / "results.json")[0])
    assert set(scores["run"]) == {"name", "finetune", "fewshot", "fewshot_finetune"}
    assert set(scores["random encoder"]) == {"name", "finetune", "fewshot", "fewshot_finetune"}
    data = load("digits", max_train=200, max_test=50)
    known = json.loads((run / "encoder" / "config.json").read_text())["ssl_blocks"]
    settings = FinetuneSettings(epochs=2, warmup_epochs=1, batch_size=32)
    assert data.test is not None
    by_hand = finetune_encoder(
        encoders.load_encoder(run / "encoder"), data.train, data.test, mean=known["mean"], std=known["std"],
        settings=settings,
    )  # fmt: skip
    assert scores["run"]["finetune"]["losses"] == pytest.approx(list(by_hand.score.losses))
    shown = re.sub(r"[\s┃]+", " ", capsys.readouterr().out)
    assert "fine-tuned" in shown
    assert f"{scores['run']['finetune']['accuracy']:.1%}" in shown


def test_segmentation_needs_no_data_of_the_run(tmp_path: Path) -> None:
    encoder = encoders.timm_vit(image_size=16, patch_size=4, depth=4, embed_dim=16, num_heads=2)
    folder = export_encoder(encoder, tmp_path / "mine", tokenizer=None, mean=HALF, std=HALF)
    output = tmp_path / "out" / "scores.json"
    options = ["--segment.epochs=1", "--segment.width=8", "--segment.from_random=true", f"--output={output}"]
    assert main(["segment", str(folder), *options, *CPU]) == 0
    scores = by_name(results(output)[0])
    assert list(scores) == ["most frequent class", "random encoder", "mine"]
    assert all(0 < row["segment"]["mean_iou"] < 1 for row in scores.values())


def test_a_timm_name_is_evaluated_on_resized_images(tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    options = ["--data.name=digits", "--data.max_train=100", "--data.max_test=20", "--pretrained=false"]
    arguments = ["knn", "test_vit", *options, f"--output={output}", "--image_size=32", *CPU]
    assert main(arguments) == 0
    entry = results(output)[0]
    assert entry["image_size"] == [32, 32]
    assert [row["name"] for row in entry["scores"]] == ["raw pixels", "test_vit"]  # random weights, once


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("test_vit", "mean of normalised patch tokens"),
        ("test_resnet", "mean of normalised regions"),
        ("test_convnext", "mean of normalised regions"),
        ("test_vit_relpos", "the model's own"),
        ("test_efficientnet_evos", "the model's own"),
    ],
)
def test_any_family_of_timm_has_features(name: str, pooling: str, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    options = ["--data.name=digits", "--data.max_train=40", "--data.max_test=10", "--pretrained=false"]
    assert main(["knn", name, *options, "--pixels=false", f"--output={output}", *CPU]) == 0
    assert results(output)[0]["features"] == pooling


def test_a_function_in_user_code_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(
        "import ssl_blocks as sb\n"
        "def small():\n"
        "    return sb.encoders.timm_vit(image_size=8, patch_size=4, channels=1, depth=1, embed_dim=8, num_heads=2)\n"
        "def plain():\n"
        "    return small().module\n"
        "def wrong():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ["--data.name=digits", "--data.max_train=40", "--data.max_test=10", "--output=scores.json", *CPU]
    assert main(["knn", "own_models:small", *options]) == 0
    assert main(["knn", "own_models:plain", *options]) == 0
    assert [len(entry["scores"]) for entry in results(tmp_path / "scores.json")] == [2, 2]


def test_the_patch_puzzles_encoder_is_fed_as_in_pretraining(tmp_path: Path) -> None:
    tokenizer = PatchTokenizer.from_grid(image_size=8, grid=2, channels=1, crop=1)
    torch.manual_seed(0)
    encoder = encoders.PostNormTransformer(grid=2, patch=3, channels=1, depth=1, num_heads=3)
    folder = export_encoder(encoder, tmp_path / "apl", tokenizer=tokenizer, mean=(0.3,), std=(0.4,))
    output = tmp_path / "scores.json"
    options = ["--data.name=digits", "--data.max_train=100", "--data.max_test=50", f"--output={output}"]
    assert main(["knn", str(folder), *options, *CPU]) == 0
    data = load("digits", max_train=100, max_test=50)
    assert data.test is not None
    train, test = (
        encoder_features(encoder, split.images, mean=(0.3,), std=(0.4,), tokenizer=tokenizer)
        for split in (data.train, data.test)
    )
    expected = knn_accuracy(train, data.train.labels, test, data.test.labels)
    assert by_name(results(output)[0])["apl"]["knn"]["accuracy"] == pytest.approx(expected)


def test_the_logistic_probe_and_augmented_images_are_options(run: Path) -> None:
    assert main(["probe", str(run), "--probe.solver=logistic", "--probe.cs=0.1,1", "--pixels=false", *CPU]) == 0
    assert main(["probe", str(run), "--probe.augment=true", "--probe.epochs=2", "--probe.warmup_epochs=1", *CPU]) == 0
    first, second = results(run / "results.json")
    data = load("digits", max_train=200, max_test=50)
    known = json.loads((run / "encoder" / "config.json").read_text())["ssl_blocks"]
    encoder = encoders.load_encoder(run / "encoder")
    assert data.test is not None
    train, test = (
        encoder_features(encoder, split.images, mean=known["mean"], std=known["std"])
        for split in (data.train, data.test)
    )
    by_hand = logistic_probe(train, data.train.labels, test, data.test.labels, cs=(0.1, 1.0))
    assert by_name(first)["run"]["probe"]["accuracy"] == pytest.approx(by_hand.accuracy)
    assert by_name(second)["run"]["probe"]["candidates"] == pytest.approx(list(LinearSettings.for_images(200).lrs))


def test_options_have_the_defaults_of_the_protocols() -> None:
    assert FinetuneConfig().settings(0) == FinetuneSettings()
    assert SegmentConfig().training() == SegmentationTraining()
    assert ProbeConfig().settings(1_281_167, 0).lrs[1] == pytest.approx(LinearSettings().lrs[0])
    assert ProbeConfig().settings(1_281_167, 0).batch_size == LinearSettings().batch_size
    assert ProbeConfig(lrs=(0.5,), batch_size=7).settings(100, 3) == LinearSettings(lrs=(0.5,), batch_size=7, seed=3)


def test_a_run_tells_its_data_and_seed(run: Path) -> None:
    known = configure(str(run), {})
    assert (known.data.name, known.data.max_train, known.data.max_test, known.seed) == ("digits", 200, 50, 0)
    other = configure(str(run / "encoder"), {"data.name": "cifar10", "seed": "3"})
    assert (other.data.name, other.data.max_train, other.seed) == ("cifar10", None, 3)
    assert configure("vit_tiny_patch16_224", {}) == EvaluateConfig()


def test_help_names_every_option() -> None:
    text = help_text("evaluate.py", width=100)
    for option in list_options(EvaluateConfig):
        assert f"--{option.path} " in text
        assert option.field.description, option.path
    assert max(map(len, text.splitlines())) <= 100
    assert split_arguments(["knn", "-h"])[2] == {"help": None}


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vit_tiny_patch16_224"], "say what to evaluate by: one or several of knn, probe, fewshot, finetune, segment"),
        (["knn"], "knn: say what to evaluate: the folder of a run"),
        (["knn", "a", "b"], "a b: give one encoder"),
        (["knn", "x", "--knn.q=3"], "--knn.q=3 is no known option; did you mean --knn.k?"),
        (["knn", "x", "--knn.k"], "--knn.k needs a value"),
        (["knn", "x", "--knn.k=0"], "knn.k=0 must be greater than 0"),
        (["knn", "x", "--seed=1", "--seed=2"], "--seed is given twice"),
        (["knn", "vit_tny_patch16_224", "--data.name=digits"], "did you mean one of timm's vit_tiny_patch16_224"),
        (["knn", "runs/nowhere"], "there is no such folder and no such model"),
        (["knn", "nowhere:make"], "encoder='nowhere:make' cannot be imported: No module named 'nowhere'"),
        (["knn", "test_vit", "--pretrained=false"], "data.name is required, for test_vit comes from no run"),
        (["probe", "test_vit", "--probe.lrs=0"], "probe.lrs"),
        (["finetune", "test_vit", "--finetune.batch_size=31"], "finetune: batch_size=31 must be a multiple of 2"),
        (["knn", "test_vit", "--pretrained=false", "--data.name=digits", "--image_size=33"], "image_size=33 must be"),
        (["knn", "test_vit", "--device=cuda", "--data.name=digits"], "device='cuda' needs a CUDA GPU"),
    ],
)
def test_wrong_words_are_one_clear_error(arguments: list[str], message: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in refused(arguments, capsys)


def test_weights_that_cannot_be_had_are_one_clear_error(capsys, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = refused(["knn", "vit_tiny_patch16_224.augreg_in21k", "--data.name=digits"], capsys)
    assert "encoder='vit_tiny_patch16_224.augreg_in21k' cannot be had from timm with its weights" in error
    assert "--pretrained false" in error


def test_a_folder_without_its_configuration_is_named(run: Path, tmp_path: Path, capsys) -> None:
    before = (run / "results.json").read_bytes()
    (tmp_path / "empty").mkdir()
    assert "config.json is not in it" in refused(["knn", str(tmp_path / "empty"), "--data.name=digits"], capsys)
    (run / "encoder" / "config.json").unlink()
    assert "is a run without an exported encoder (no encoder/config.json)" in refused(["knn", str(run)], capsys)
    assert "config.json is not in it" in refused(["knn", str(run / "encoder")], capsys)
    assert (run / "results.json").read_bytes() == before


def unlabelled(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    return folder


def test_data_without_labels_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    flat = unlabelled(tmp_path / "flat")
    error = refused(["knn", str(run), f"--data.name=imagefolder:{flat}"], capsys)
    assert "data: name=" in error
    assert "has no test images" in error or "has no labels" in error


def test_features_with_nan_name_the_layer(run: Path, capsys) -> None:
    from safetensors.torch import load_file, save_file

    path = run / "encoder" / "model.safetensors"
    state = load_file(path)
    state["blocks.1.mlp.fc1.bias"][0] = float("nan")
    save_file(state, path)
    before = (run / "results.json").read_bytes()
    assert "first in its layer blocks.1.mlp.fc1" in refused(["knn", str(run), *CPU], capsys)
    assert (run / "results.json").read_bytes() == before


def test_other_files_are_not_overwritten(run: Path, tmp_path: Path, capsys) -> None:
    mine = tmp_path / "notes.txt"
    mine.write_text("my notes")
    assert "notes.txt is no JSON, and is left as it is" in refused(["knn", str(run), f"--output={mine}"], capsys)
    assert mine.read_text() == "my notes"
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml is damaged" in refused(["knn", str(run)], capsys)


def test_a_full_disk_costs_neither_the_numbers_nor_the_old_results(run: Path, monkeypatch, capsys) -> None:
    before = (run / "results.json").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssl_blocks.files.os.fsync", full_disk)
    assert main(["knn", str(run), *CPU]) == 2
    shown = capsys.readouterr()
    assert "No space left on device" in shown.err
    assert "raw pixels" in shown.out
    assert (run / "results.json").read_bytes() == before
    assert not list(run.rglob("*.tmp"))


def test_more_classes_in_test_than_in_train_are_refused(run: Path, tmp_path: Path, capsys) -> None:
    for split, classes in (("train", 2), ("test", 3)):
        for number in range(classes):
            folder = tmp_path / "set" / split / str(number)
            folder.mkdir(parents=True)
            for copy in range(4):
                Image.new("L", (8, 8), 50 * number + copy).save(folder / f"{copy}.png")
    error = refused(["probe", str(run), f"--data.name=imagefolder:{tmp_path / 'set'}", *CPU], capsys)
    assert "classes" in error


@pytest.mark.parametrize(
    ("tasks", "option", "message"),
    [
        (["knn"], "--knn.k=201", "knn.k=201 must be at most the number of training images, 200"),
        (["fewshot"], "--fewshot.shots=100", "fewshot: shots=100 must not exceed the labels of a class"),
        (["fewshot"], "--fewshot.shots=0", "fewshot.shots=0 must be greater than 0"),
        (["finetune"], "--finetune.epochs=3", "finetune: warmup_epochs=5.0 must be at least 0 and below epochs=3"),
        (["segment"], "--segment.data=shapes", "segment: encoder of depth 2 must have a multiple of four blocks"),
        (["knn"], "--image_size=9", "image_size=9 must be a positive multiple of the encoder's patch of 2x2 pixels"),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_computed(
    tasks: list[str], option: str, message: str, run: Path, capsys
) -> None:
    before = (run / "results.json").read_bytes()
    assert main([*tasks, str(run), option, *CPU]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "raw pixels" not in error
    assert (run / "results.json").read_bytes() == before


def test_an_encoder_without_places_for_drop_path_says_what_to_do(tmp_path: Path, capsys) -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
    folder = export_encoder(encoders.TorchvisionViT(vit), tmp_path / "tv", tokenizer=None, mean=HALF, std=HALF)
    options = ["--data.name=digits", "--data.max_train=40", "--data.max_test=10", f"--output={tmp_path / 'out.json'}"]
    options += ["--finetune.epochs=1", "--finetune.warmup_epochs=0", "--finetune.batch_size=16"]
    error = refused(["finetune", str(folder), *options, *CPU], capsys)
    assert "finetune: drop_path=0.1 needs blocks with a place for it" in error
    assert main(["finetune", str(folder), *options, "--finetune.drop_path=0", *CPU]) == 0
    assert "finetune" in by_name(results(tmp_path / "out.json")[0])["tv"]


def test_the_entry_holds_what_the_numbers_were_made_with(run: Path) -> None:
    assert main(["knn", str(run), *CPU]) == 0
    entry = results(run / "results.json")[0]
    assert set(entry) >= {"date", "command", "encoder", "features", "data", "settings", "versions", "seconds"}
    assert entry["command"].startswith("evaluate.py knn ")
    assert make_entry.__doc__


def test_processes_share_the_images_and_find_what_one_finds(run: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert main(["knn", str(run), f"--output={one}", *CPU]) == 0
    command = ("-m", "torch.distributed.run", "--nproc-per-node=2", "examples/evaluate.py")
    arguments = ("knn", str(run), f"--output={two}", *CPU)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [
        {row["name"]: row["knn"]["accuracy"] for row in entry["scores"]} for entry in (results(one)[0], results(two)[0])
    ]
    assert found[0] == pytest.approx(found[1])
    assert len(results(two)) == 1
    assert done.stdout.count("raw pixels") == 1


def test_what_cannot_be_shared_is_refused(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = refused(["knn", "probe", str(run)], capsys)
    assert "probe cannot share work between 2 processes, only knn can" in error
