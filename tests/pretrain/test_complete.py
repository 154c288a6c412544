"""A run is complete when all of it is there and whole; what is missing is made again, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from ssl_blocks.engine.checkpoints import list_checkpoints, read_checkpoint
from ssl_blocks.pretrain.complete import missing_parts
from tests.pretrain.small import prepare

pytestmark = pytest.mark.process  # takes long
ENTRY = {"data": None, "settings": {}, "scores": [], "command": "mine", "date": "2026-11-26"}
PICTURES = ("--trainer.figures=true", "--trainer.epochs=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with all that a run leaves, and an evaluation."""
    folder = prepare(tmp_path_factory.mktemp("whole"), *PICTURES, "--trainer.score=true").fit()
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"evaluations": [ENTRY]}))
    return folder


def again(folder: Path) -> None:
    prepare(folder.parent, *PICTURES, "--trainer.score=true", resume=True).fit()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])


DAMAGE = [
    ["config.yaml", Path.unlink, ["config"]],
    ["encoder/config.json", cut, ["encoder"]],
    ["encoder/model.safetensors", Path.unlink, ["encoder"]],
    ["encoder/model.safetensors", flip, ["encoder"]],
    ["encoder", shutil.rmtree, ["encoder", "card"]],
    ["encoder/README.md", Path.unlink, ["card"]],
    ["encoder/README.md", lambda path: path.write_text(""), ["card"]],
    ["figures/reconstructions.png", flip, ["figures"]],
    ["figures", shutil.rmtree, ["figures"]],
]


def test_whatever_is_damaged_is_missing(whole: Path, tmp_path: Path) -> None:
    for number, (name, damage, lacking) in enumerate(DAMAGE):
        folder = Path(shutil.copytree(whole, tmp_path / str(number)))
        damage(folder / name)
        assert missing_parts(folder, figures=True) == lacking


def test_what_is_missing_is_made_again_as_it_was_and_all_else_stays(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, cases in enumerate(([0, 5, 7], [4])):  # kinds that do not touch each other in one go
        folder = Path(shutil.copytree(whole, tmp_path / str(number) / "run"))
        contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        lacking = []
        for name, damage, kinds in (DAMAGE[case] for case in cases):
            damage(folder / name)
            lacking += kinds
        assert sorted(missing_parts(folder, figures=True)) == sorted(lacking)
        lacking = missing_parts(folder, figures=True)
        capsys.readouterr()
        again(folder)
        assert f"lacks {', '.join(lacking)}, made again" in " ".join(capsys.readouterr().out.split())
        assert missing_parts(folder, figures=True) == []
        for path, content in contents.items():
            if path.name not in ("config.yaml", "results.json", "README.md"):  # which name the folder
                assert path.read_bytes() == content, path
        assert json.loads((folder / "results.json").read_text())["evaluations"] == [ENTRY]
    folder = tmp_path / "0" / "run"
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["epochs"] == 2
    capsys.readouterr()
    again(folder)
    assert "is complete" in capsys.readouterr().out


def test_damaged_results_are_moved_aside_and_made_again(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    cut(folder / "results.json")
    before = (folder / "results.json").read_bytes()
    again(folder)
    assert (folder / "results.damaged").read_bytes() == before
    ours, theirs = (json.loads((place / "results.json").read_text()) for place in (folder, whole))
    assert ours["scores"] == theirs["scores"]
    assert ours["bits"] == theirs["bits"] == read_checkpoint(list_checkpoints(whole)[0])["ssl_blocks"]["bits"]
    assert missing_parts(folder, figures=True) == []


def test_a_configuration_that_is_not_that_of_the_checkpoint_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    config = folder / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("base_lr: 0.008", "base_lr: 0.009"))
    more = ("--optimizer.base_lr=0.009",)
    with pytest.raises(ValueError, match=r"config.yaml is not what the run was begun with, .*base_lr=0.009 \(the run"):
        prepare(tmp_path, *PICTURES, *more, resume=True)
    config.write_text(text + "seed: 1\n")
    with pytest.raises(ValueError, match=r"seed is given twice .*checkpoints have a copy: delete the file"):
        prepare(tmp_path, *PICTURES, resume=True)


def test_other_conditions_are_told_where_a_run_goes_on(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    older = list_checkpoints(folder)[1]
    prepare(tmp_path, *PICTURES, resume=older)
    assert "bits" not in capsys.readouterr().out
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    prepare(tmp_path, *PICTURES, resume=older)
    assert "to other bits than it would have come to: threads=7 (the run has 1)" in capsys.readouterr().out
