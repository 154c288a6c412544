"""The whole objective as a folder: loaded elsewhere to the same bits, and the beginning of another run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssl_blocks.__main__ import main
from ssl_blocks.deploy import export, load_objective
from ssl_blocks.engine.checkpoints import list_checkpoints, read_checkpoint
from ssl_blocks.recipes import RECIPES
from tests.deploy.conftest import SHORT
from tests.pretrain.small import config, prepare

pytestmark = pytest.mark.process  # takes long


@pytest.fixture(scope="module")
def state(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, tmp_path_factory.mktemp("states") / "state", format="state").output


def trained(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(list_checkpoints(run)[0])["state_dict"]


def test_the_objective_comes_back_whole(run: Path, state: Path) -> None:
    objective, wanted = load_objective(state), trained(run)
    found = objective.state_dict()
    assert set(wanted) == {f"model.{name}" for name in found}
    assert all(torch.equal(value, wanted[f"model.{name}"]) for name, value in found.items())
    assert any("decoder." in name for name in found)
    assert not objective.training
    notes = json.loads((state / "state.json").read_text())
    assert notes["recipe"] == "RandSACConfig"
    assert notes["image_shape"] == [1, 8, 8]
    images = torch.randn(2, 1, 8, 8)
    assert objective(images, objective.draw(images)).loss.isfinite()


def test_a_run_begins_with_it_and_goes_on_without_it(run: Path, state: Path, tmp_path: Path) -> None:
    import shutil

    moved = Path(shutil.copytree(state, tmp_path / "state"))
    again = prepare(tmp_path, *SHORT, f"--start={moved}")
    found, wanted = again.module.objective.state_dict(), trained(run)
    assert all(torch.equal(value, wanted[f"model.{name}"]) for name, value in found.items())
    fresh = prepare(tmp_path, *SHORT).module.objective.state_dict()
    assert not all(torch.equal(value, found[name]) for name, value in fresh.items())
    folder = again.fit()
    shutil.rmtree(moved)  # a checkpoint has all there is
    assert prepare(tmp_path, *SHORT, f"--start={moved}", resume=True).fit() == folder
    with pytest.raises(ValueError, match="start=None"):
        prepare(tmp_path, *SHORT, resume=True)


def test_the_row_before_training_is_no_random_encoder(state: Path, tmp_path: Path, capsys) -> None:
    folder = prepare(tmp_path, *SHORT, "--trainer.score=true", f"--start={state}").fit()
    names = [row["name"] for row in json.loads((folder / "results.json").read_text())["scores"]]
    assert names == ["raw pixels", "encoder at the start", "pretrained encoder"]


def test_other_parts_are_refused(state: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"start=.* must hold the parts of this objective, but .*decoder"):
        prepare(tmp_path, *SHORT, "--decoder.depth=2", f"--start={state}")
    with pytest.raises(FileNotFoundError, match=r"state.json is not in it"):
        prepare(tmp_path, *SHORT, f"--start={tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match=r"is of RandSACConfig, not of recipe=mae \(MAEConfig\)"):
        load_objective(state, recipe=RECIPES["mae"])
    assert not config(tmp_path, *SHORT).folder.exists()


def test_a_damaged_state_is_named(state: Path, tmp_path: Path) -> None:
    import shutil

    broken = Path(shutil.copytree(state, tmp_path / "broken"))
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load_objective(broken)
    notes = json.loads((broken / "state.json").read_text())
    (broken / "state.json").write_text(json.dumps(notes | {"format_version": 9}))
    with pytest.raises(ValueError, match="has format 9; this version reads 1"):
        load_objective(broken)
    (broken / "state.json").write_text(json.dumps(notes | {"recipe": "MineConfig"}))
    with pytest.raises(ValueError, match="is of MineConfig, none of this library's recipes: give recipe="):
        load_objective(broken)


def test_a_state_replaces_nothing(run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "mine").touch()
    words = ["export", str(run), "--format=state", "-o", str(tmp_path / "state")]
    assert main(words) == 2
    assert main([*words, "--overwrite"]) == 2
    assert "must be new or empty: a state replaces nothing" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["mine"]
    assert len(load_file(export(run, tmp_path / "other", format="state").output / "model.safetensors")) > 10
