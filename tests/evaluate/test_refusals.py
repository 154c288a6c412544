"""Wrong input is one clear error, found early, and no file is touched."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from ssl_blocks import encoders
from ssl_blocks.encoders import export_encoder
from ssl_blocks.evaluate import main
from tests.evaluate.test_cli import CPU, HALF, by_name, results

pytestmark = pytest.mark.process  # takes long


def refused(arguments: list[str], capsys: pytest.CaptureFixture, *, code: int = 2) -> str:
    assert main(arguments) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vit_tiny_patch16_224"], "say what to evaluate by: one or several of knn, probe, attentive, fewshot, fine"),
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
        (["probe", "test_vit", "--probe.augment=true", "--probe.solver=logistic"], "probe.augment=True goes with"),
        (["knn", "test_resnet", "--attention=causal", "--pretrained=false"], "attention='causal' needs an encoder of"),
        (["segment", "test_vit", "--attention=both", "--pretrained=false"], "attention='both' is for protocols that"),
        (["finetune", "test_vit", "--finetune.batch_size=31"], "finetune.batch_size=31 must be a multiple of 2"),
        (["knn", "test_vit", "--pretrained=false", "--data.name=digits", "--image_size=33"], "image_size=33 must be"),
        (["knn", "test_vit", "--device=cuda", "--data.name=digits"], "device='cuda' needs a CUDA GPU"),
    ],
)
def test_wrong_words_are_one_clear_error(arguments: list[str], message: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in refused(arguments, capsys)


def test_weights_that_cannot_be_had_are_one_clear_error(capsys, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the environment was read long ago
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


def test_results_go_into_a_file_of_results_or_a_new_one(run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "link.json").symlink_to(run / "results.json")
    (tmp_path / "file").write_text("")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for output, said in {
        "/dev/null": "/dev/null is a device",
        "/dev/stdout": "is a link, which is not followed",
        str(tmp_path / "link.json"): "link.json is a link, which is not followed",
        str(run): "is a folder: give the path of a file",
        str(tmp_path / "file" / "a.json"): "file is no folder",
        str(run / "encoder" / "config.json"): "config.json holds no results, and is left as it is",
        str(run / "config.yaml"): "config.yaml is no JSON, and is left as it is",
    }.items():
        assert said in refused(["knn", str(run), f"--output={output}"], capsys)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def unlabelled(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    return folder


def test_data_without_labels_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    flat = unlabelled(tmp_path / "flat")
    error = refused(["knn", str(run), f"--data.name=imagefolder:{flat}"], capsys, code=1)
    assert "nothing can be scored: knn: data: name=" in error
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
    assert "config.yaml is not valid YAML" in refused(["knn", str(run)], capsys)


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
        (["fewshot"], "--fewshot.shots=0", "fewshot.shots=0 must be greater than 0"),
        (["finetune"], "--finetune.epochs=0", "finetune.epochs=0 must be greater than 0"),
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


def test_what_cannot_be_shared_is_refused(run: Path, monkeypatch, capsys) -> None:
    started = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (started | {"TORCHELASTIC_RUN_ID": "x", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    error = refused(["knn", "probe", str(run)], capsys)
    assert "probe cannot share work between 2 processes, only knn and finetune and segment can" in error
