"""``~`` is the home folder wherever a path is given."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import ssl_blocks as sb
from ssl_blocks.cli.arguments import read_arguments
from ssl_blocks.cli.command import read_preset
from ssl_blocks.encoders import export_encoder, timm_vit
from ssl_blocks.encoders.weights import read_state
from ssl_blocks.files import at_home, atomically
from ssl_blocks.pretrain.resume import stored_config
from ssl_blocks.recipes.randsac import RECIPE, RandSACConfig


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_settings(home: Path) -> None:
    config = RandSACConfig.model_validate({"name": "run", "output_dir": "~/runs", "data": {"root": "~/data"}})
    assert config.folder == home / "runs" / "run"
    assert config.data.root == home / "data"
    with pytest.raises(ValueError, match="~nobody-here/runs begins with the home of a user whom this system does not"):
        RandSACConfig.model_validate({"name": "run", "output_dir": "~nobody-here/runs"})


def test_the_command_line(home: Path) -> None:
    assert read_arguments(["--resume", "~/runs/one"], RandSACConfig).resume == home / "runs/one"
    assert read_arguments(["--resume=~/runs/one"], RandSACConfig).resume == home / "runs/one"
    (home / "mine.yaml").write_text("name: mine")
    assert read_preset("~/mine.yaml", RECIPE) == {"name": "mine"}
    (home / "config.yaml").write_text(yaml.safe_dump({"name": "stored"}))
    assert stored_config(Path("~")) == {"name": "stored"}


def test_encoders_and_weights(home: Path) -> None:
    encoder = timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2)
    export_encoder(encoder, home / "encoder", tokenizer=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    found = timm_vit("local-dir:~/encoder", image_size=8, pretrained=True)
    assert torch.equal(found.module.norm.weight, encoder.module.norm.weight)
    torch.save({"weight": torch.ones(2)}, home / "weights.pth")
    assert list(read_state("~/weights.pth")) == ["weight"]


def test_data_and_what_is_written(home: Path) -> None:
    (home / "photos").mkdir()
    for i in range(3):
        Image.new("L", (8, 8), 40 * i).save(home / "photos" / f"{i}.png")
    assert len(sb.data.load("imagefolder:~/photos", channels=1).train) == 3
    with atomically("~/notes/a.json") as temporary:
        temporary.write_text("{}")
    assert json.loads((home / "notes" / "a.json").read_text()) == {}
    assert at_home("plain/~") == Path("plain/~")
