"""Exported encoders: loaded by plain timm, never half written."""

import json
import logging
import os
import stat
from pathlib import Path

import pytest
import timm
import torch

from ssl_blocks import PatchTokenizer, encoders
from ssl_blocks.encoders import export_encoder, timm_models

HALF = (0.5, 0.25, 0.125)


def small(**options):
    return encoders.timm_vit(image_size=(16, 24), patch_size=(4, 8), depth=2, embed_dim=24, num_heads=2, **options)


def save(encoder, folder: Path) -> Path:
    tokenizer = PatchTokenizer(image_size=(16, 24), patch_size=(4, 8))
    return export_encoder(encoder, folder, tokenizer=tokenizer, mean=HALF, std=HALF)


@pytest.mark.parametrize("positions", ["sincos", "learned", "none"])
@pytest.mark.parametrize("class_token", [False, True])
def test_plain_timm_gives_the_same_features(tmp_path: Path, positions: str, class_token: bool) -> None:
    encoder = small(positions=positions, class_token=class_token).eval()
    folder = save(encoder, tmp_path / "encoder")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(model(images), encoder.features(images))
    assert set(model.state_dict()) == set(encoder.module.state_dict())


def test_a_wrapped_model_of_the_users_own_is_exported_too(tmp_path: Path) -> None:
    arguments = {"img_size": (16, 24), "patch_size": (4, 8), "depth": 2, "embed_dim": 24, "num_heads": 2}
    arguments |= {"num_classes": 0, "global_pool": "avg", "fc_norm": False}
    encoder = encoders.TimmViT(timm.create_model("vit_tiny_patch16_224", **arguments), model_args=arguments).eval()
    model = timm.create_model(f"local-dir:{save(encoder, tmp_path / 'encoder')}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(model(images), encoder.features(images))


def test_one_channel_is_exported_without_a_remark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = encoders.timm_vit(image_size=8, patch_size=2, channels=1, depth=1, embed_dim=16, num_heads=2)
    tokenizer = PatchTokenizer(image_size=8, patch_size=2, channels=1)
    folder = export_encoder(encoder, tmp_path / "encoder", tokenizer=tokenizer, mean=(0.5,), std=(0.25,))
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["mean"] == [0.5]
    assert not caplog.records


def test_preprocessing_is_noted_where_timm_looks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(small(), tmp_path / "encoder")
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}", pretrained=True))
    assert tuple(config["mean"]) == HALF
    assert tuple(config["std"]) == HALF
    assert tuple(config["input_size"]) == (3, 16, 24)
    assert not caplog.records
    assert logging.getLogger("timm.data").level == logging.NOTSET


def test_failed_export_leaves_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small()
    folder = save(encoder, tmp_path / "encoder")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(timm_models, "save_for_hf", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(small(), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_export_replaces_an_older_one(tmp_path: Path) -> None:
    folder = save(small(), tmp_path / "encoder")
    (folder / "stale.txt").write_text("old")
    save(small(class_token=True), folder)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["model_args"]["class_token"] is True
    assert [p.name for p in tmp_path.iterdir()] == ["encoder"]


@pytest.mark.parametrize("inside", ["thesis.txt", "config.json", "photos/one.png"])
def test_a_folder_of_anything_else_is_refused_untouched(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "mine" / inside
    file.parent.mkdir(parents=True)
    file.write_text('{"of": "another program"}')
    with pytest.raises(FileExistsError, match=f"must be new, empty or an earlier export, but holds '{inside[:6]}"):
        save(small(), tmp_path / "mine")
    assert file.read_text() == '{"of": "another program"}'
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_inside_an_earlier_export_is_not_deleted(tmp_path: Path) -> None:
    folder = save(small(), tmp_path / "encoder")
    (folder / ".git").mkdir()
    with pytest.raises(FileExistsError, match=r"holds '\.git'"):
        save(small(), folder)
    assert (folder / ".git").is_dir()


def test_a_file_is_no_folder_to_export_to(tmp_path: Path) -> None:
    (tmp_path / "encoder").write_text("mine")
    with pytest.raises(FileExistsError, match="but is a file"):
        save(small(), tmp_path / "encoder")
    assert (tmp_path / "encoder").read_text() == "mine"


def test_a_folder_may_be_words_with_the_home_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    assert save(small(), "~/empty") == tmp_path / "empty"  # type: ignore[arg-type]
    assert encoders.load_encoder("~/empty").dim == 24


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    save(small(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").is_file()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_files_have_the_permissions_that_others_have(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        folder = save(small(), tmp_path / "encoder")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys(("README.md", "config.json", "model.safetensors"), mode)


@pytest.mark.parametrize("make", ["from scratch", "the user's own", "regions"])
def test_no_weights_are_claimed_that_are_not_there(tmp_path: Path, make: str) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, fc_norm=False, img_size=(16, 24), patch_size=(4, 8))
    kinds = {
        "from scratch": small,
        "the user's own": lambda: encoders.TimmViT(vit),
        "regions": lambda: encoders.TimmRegions(timm.create_model("test_convnext", num_classes=0)),
    }
    folder = save(kinds[make](), tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    assert config["ssl_blocks"]["origin"] is None
    assert config["pretrained_cfg"].keys().isdisjoint({"tag", "license", "hf_hub_id", "url"})
    assert config["pretrained_cfg"]["interpolation"] == "bilinear"
    card = (folder / "README.md").read_text()
    assert "license" not in card
    assert "began with" not in card


def test_pretrained_weights_are_named_with_their_license_however_often_saved(tmp_path: Path) -> None:
    name, weights = "vit_tiny_patch16_224", tmp_path / "weights.pth"
    torch.save(timm.create_model(name).state_dict(), weights)
    overlay = {"file": str(weights), "custom_load": False}
    encoder = encoders.timm_vit(name, image_size=224, pretrained=True, pretrained_cfg_overlay=overlay)
    first = export_encoder(encoder, tmp_path / "first", tokenizer=None, mean=HALF, std=HALF)
    second = export_encoder(encoders.load_encoder(first), tmp_path / "second", tokenizer=None, mean=HALF, std=HALF)
    third = encoders.timm_vit(f"local-dir:{second}", image_size=224, pretrained=True)
    for folder in (first, second, export_encoder(third, tmp_path / "third", tokenizer=None, mean=HALF, std=HALF)):
        config, card = json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()
        origin = {"name": f"{name}.augreg_in21k_ft_in1k", "license": "apache-2.0"}
        assert config["ssl_blocks"]["origin"] == origin
        assert "license: apache-2.0" in card
        assert f"| began with | the weights of `{origin['name']}` (license apache-2.0) |" in card
        assert "tag" not in config["pretrained_cfg"]
