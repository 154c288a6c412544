"""Exports compute what the encoder does, for any number of images, and say what they take."""

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open

from ssl_blocks.__main__ import main
from ssl_blocks.data.augment import normalize
from ssl_blocks.deploy import export
from ssl_blocks.encoders import load_encoder
from ssl_blocks.evaluation import load_classifier

pytestmark = [
    pytest.mark.process,  # takes long
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),  # torch 2.11 reads from what is not
]


def statistics(run: Path) -> dict:
    return json.loads((run / "encoder" / "config.json").read_text())["ssl_blocks"]


@torch.no_grad()
def test_onnx_takes_any_number_of_images(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "e.onnx", format="onnx")
    session = onnxruntime.InferenceSession(str(done.output), providers=["CPUExecutionProvider"])
    images, known = torch.rand(5, 1, 8, 8), statistics(run)
    wanted = load_encoder(run / "encoder").features(normalize(images, known["mean"], known["std"]))
    for count in (1, 5):
        (found,) = session.run(["features"], {"images": images[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), wanted[:count], rtol=1e-4, atol=1e-5)
    notes = {entry.key: json.loads(entry.value) for entry in onnx.load(done.output).metadata_props if entry.key != "x"}
    assert notes["normalize"] is True
    assert notes["mean"] == pytest.approx(known["mean"])
    assert notes["image_size"] == [8, 8]
    assert notes["value_range"] is None


@torch.no_grad()
def test_a_program_of_torch_is_the_encoder(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "e.pt2", format="torch", image_size=16, normalize=False)
    extra = {"ssl_blocks.json": ""}
    program = torch.export.load(done.output, extra_files=extra).module()
    images = torch.randn(3, 1, 16, 16)
    wanted = load_encoder(run / "encoder", image_size=16).features(images)
    torch.testing.assert_close(program(images), wanted, rtol=1e-4, atol=1e-5)
    notes = json.loads(extra["ssl_blocks.json"])
    assert (notes["image_size"], notes["normalize"]) == ([16, 16], False)


@torch.no_grad()
def test_a_classifier_gives_its_logits(classifier: Path, tmp_path: Path, monkeypatch) -> None:
    import ssl_blocks.deploy.programs as programs

    written = []  # programs as they are traced: how is another test's
    monkeypatch.setattr(programs, "_trace", lambda program, _: written.append(program) or program)
    monkeypatch.setattr(programs, "_write_torch", lambda program, path, _: path.touch() or program)
    done = export(classifier, tmp_path / "c.pt2", format="torch")
    loaded, images = load_classifier(classifier), torch.rand(4, 1, 8, 8)
    wanted = loaded.model(normalize(images, loaded.mean, loaded.std))
    torch.testing.assert_close(written[0].eval()(images), wanted, rtol=1e-4, atol=1e-5)
    assert done.notes["classes"][:2] == ["zero", "one"]
    assert done.notes["output"] == "logits"


@torch.no_grad()
def test_weights_and_folders_are_those_of_timm(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "w.safetensors", format="safetensors")
    export(run, tmp_path / "folder", format="timm")
    encoder, images = load_encoder(run / "encoder"), torch.randn(2, 1, 8, 8)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert set(file.keys()) == set(encoder.module.state_dict())
        notes = json.loads(file.metadata()["ssl_blocks"])
    assert notes["input"] == "normalised images [B, C, H, W]"
    model = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    torch.testing.assert_close(model(images), encoder.features(images))
    mode = (tmp_path / "w.safetensors").stat().st_mode & 0o777
    (tmp_path / "plain").touch()
    assert mode == (tmp_path / "plain").stat().st_mode & 0o777


def test_what_computes_something_else_is_not_kept(run: Path, tmp_path: Path, monkeypatch) -> None:
    import ssl_blocks.deploy.programs as programs

    def write(program: Any, path: Path, _: object) -> Any:
        path.touch()
        return lambda images: program(images) * 1.01

    monkeypatch.setattr(programs, "_trace", lambda program, _: program)
    monkeypatch.setattr(programs, "_write_torch", write)
    with pytest.raises(ValueError, match=r"what was written differs by .* more than tolerance=0.0001 of it"):
        export(run, tmp_path / "e.pt2", format="torch")
    assert list(tmp_path.iterdir()) == []
    assert export(run, tmp_path / "e.pt2", format="torch", tolerance=0.1).difference > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--format", "onnx", "-o", "e.pt"], "output='e.pt' must end in .onnx"),
        (["RUN", "--format", "onn", "-o", "e.onnx"], "did you mean 'onnx'?"),
        (["RUN", "-o", "e.onnx"], "export needs --format onnx|torch|timm|safetensors|state"),
        (["RUN", "--format=torch", "-o", "e.pt2", "--image_size=9"], "image_size=9 must be a positive multiple"),
        (["MODEL", "--format=torch", "-o", "e.pt2", "--image_size=16"], "image_size=16 must be left out for a trained"),
        (["MODEL", "--format=timm", "-o", "e"], "format='timm' is for encoders"),
        (["MODEL", "--format=state", "-o", "e"], "must be a run (a folder with config.yaml) for format='state'"),
        (["nowhere", "--format=onnx", "-o", "e.onnx"], "there is no such folder and no such model"),
    ],
)
def test_wrong_words_are_one_line(words, message, run, classifier, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": str(classifier), "RUN": str(run)}
    assert main(["export", *(places.get(word, word) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []
