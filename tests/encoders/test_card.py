"""The model card says what is true of the encoder beside it, and its commands work."""

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml

from ssl_blocks import PatchTokenizer, encoders
from ssl_blocks.encoders import export_encoder
from ssl_blocks.encoders.card import plain_card, write_card
from tests.pretrain.small import prepare

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    short = (
        "--trainer.score=true",
        "--trainer.epochs=1",
        "--optimizer.warmup_epochs=0.5",
        "--data.max_train=128",
        "--data.max_test=40",
    )
    return prepare(tmp_path_factory.mktemp("runs"), *short).fit()


def python_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


@pytest.mark.process
def test_a_run_writes_what_it_did(run: Path) -> None:
    card = (run / "encoder" / "README.md").read_text()
    config = yaml.safe_load((run / "config.yaml").read_text())
    results = json.loads((run / "results.json").read_text())
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "timm"
    assert card.split("---")[2].strip().startswith("# run\n")
    assert "Pretrained with `RandSAC` of ssl_blocks" in card
    assert "objective `SegmentPrediction`" in card
    for row in (
        "| data | `digits`, 128 training images |",
        "| epochs | 1 |",
        f"| batch, base rate | {config['optimizer']['batch_size']}, {config['optimizer']['base_lr']:g} |",
        "| seed | 0 |",
        "| patches | 4 x 4 of 2 x 2 pixels |",
        "| features | mean of normalised patch tokens |",
    ):
        assert row in card.splitlines(), row
    for score in results["scores"]:
        probe = score["fewshot"]
        assert f"| {score['name']} | {probe['mean']:.1%} ± {probe['std']:.1%} | {score['knn']:.1%} |" in card


def test_the_commands_of_the_card_load_the_encoder(run: Path) -> None:
    blocks = python_blocks((run / "encoder" / "README.md").read_text())
    assert len(blocks) == 2
    images = torch.randn(2, 1, 8, 8)
    found = []
    for block in blocks:
        space = {"images": images}
        with torch.no_grad():
            exec(block, space)
        found.append(space["features"])
    torch.testing.assert_close(found[0], found[1])
    assert found[0].shape == (2, 16)


def test_the_card_is_the_same_when_nothing_was_added(run: Path) -> None:
    card = run / "encoder" / "README.md"
    before = card.read_text()
    assert write_card(run) == card
    assert card.read_text() == before


def test_a_missing_part_leaves_the_card_alone(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    before = (copy / "encoder" / "README.md").read_text()
    (copy / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        write_card(copy)
    assert (copy / "encoder" / "README.md").read_text() == before


def test_an_export_without_a_run_has_a_plain_card(tmp_path: Path) -> None:
    tokenizer = PatchTokenizer(image_size=8, patch_size=4)
    encoder = encoders.timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=8, num_heads=2).eval()
    folder = export_encoder(encoder, tmp_path / "mine", tokenizer=tokenizer, mean=HALF, std=HALF)
    card = (folder / "README.md").read_text()
    assert card == plain_card(folder, json.loads((folder / "config.json").read_text()))
    assert "Pretrained" not in card
    assert "## Scores" not in card
    space = {"images": torch.randn(2, 3, 8, 8)}
    with torch.no_grad():
        exec(python_blocks(card)[0], space)
        torch.testing.assert_close(space["features"], encoder.features(space["images"]))
    assert isinstance(space["model"], timm.models.VisionTransformer)


def test_patches_of_a_puzzle_are_said_to_be_cut_out(tmp_path: Path) -> None:
    tokenizer = PatchTokenizer.from_grid(image_size=9, grid=2, crop=1)
    encoder = encoders.PostNormTransformer(grid=2, patch=3, depth=1, num_heads=3)
    folder = export_encoder(encoder, tmp_path / "apl", tokenizer=tokenizer, mean=HALF, std=HALF)
    card = (folder / "README.md").read_text()
    assert "library_name: ssl_blocks" in card
    assert "2 x 2 of 3 x 3 pixels, cut out of cells with 1 pixels left out" in card
    space = {"images": tokenizer(torch.randn(2, 3, 9, 9))}
    for block in python_blocks(card):
        exec(block, space)
    assert space["features"].shape == (2, 27)


@pytest.mark.parametrize(("text", "what"), [("{", "is no JSON"), ("[1]", "must hold names"), ("[" * 100_000, "JSON")])
def test_a_damaged_configuration_is_named(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"config\.json .*{what}"):
        encoders.load_encoder(tmp_path)
