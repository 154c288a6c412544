"""Whatever is exported can be loaded again, with equal features."""

import json
from pathlib import Path

import pytest
import torch

from ssl_blocks import PatchTokenizer, encoders
from ssl_blocks.encoders import adapter, export_encoder

HALF = (0.5, 0.25, 0.125)
TOKENIZER = PatchTokenizer.from_grid(image_size=17, grid=3, crop=1)


def original(**options) -> encoders.PostNormTransformer:
    torch.manual_seed(0)
    return encoders.PostNormTransformer(grid=3, patch=4, depth=2, num_heads=4, dropout=0.3, **options)


def vit() -> encoders.TimmViT:
    return encoders.timm_vit(
        image_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2, positions="none", proj_drop_rate=0.1
    )


def save(encoder: encoders.FeatureEncoder, folder: Path) -> Path:
    return export_encoder(encoder, folder, tokenizer=TOKENIZER, mean=HALF, std=HALF)


@pytest.mark.parametrize("kind", [original, vit])
def test_features_are_equal_after_saving_and_loading(kind, tmp_path: Path) -> None:
    encoder = kind()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = save(encoder, tmp_path / "encoder")
    again = encoders.load_encoder(folder)
    patches = TOKENIZER(torch.randn(4, 3, 17, 17))
    encoder.module.eval()
    with torch.no_grad():
        assert torch.equal(again.features(patches), encoder.features(patches))
    assert type(again) is type(encoder)
    assert not any(part.training for part in again.module.modules())
    assert isinstance(encoders.load_encoder(str(folder)), encoders.TokenEncoder)
    assert (again.grid, again.patch, again.channels) == (encoder.grid, encoder.patch, encoder.channels)


def test_the_export_of_an_own_kind_notes_what_evaluation_needs(tmp_path: Path) -> None:
    folder = save(original(mlp_ratio=2), tmp_path / "encoder")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "PostNormTransformer"
    assert config["model_args"] == {
        "grid": [3, 3],
        "patch": [4, 4],
        "channels": 3,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 2,
        "dropout": 0.3,
    }
    notes = config["ssl_blocks"]
    assert (notes["patch"], notes["crop"], notes["grid"], notes["channels"]) == ([4, 4], 1, [3, 3], 3)
    assert (notes["mean"], notes["std"], notes["format_version"]) == (list(HALF), list(HALF), 1)


def test_a_failed_export_of_an_own_kind_leaves_the_old_one_whole(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(original(), tmp_path / "encoder")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapter, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(original(mlp_ratio=1), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_own_kind_replaces_a_model_of_timm_and_the_reverse(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    for encoder in (vit(), original(), vit()):
        (save(encoder, folder) / "stale.txt").touch()
        assert type(encoders.load_encoder(folder)) is type(encoder)
    save(original(), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]
    assert not (folder / "stale.txt").exists()


def test_other_models_are_refused_by_the_export(tmp_path: Path) -> None:
    class Other(torch.nn.Module):
        channels = dim = 3

        @property
        def module(self) -> torch.nn.Module:
            return self

        def features(self, images):
            return images.mean((2, 3))

    message = "must be one of this library's, or its module a model of timm, to be exported, got Other with Other"
    with pytest.raises(TypeError, match=message):
        save(Other(), tmp_path / "encoder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_an_export_is_named(missing: str, tmp_path: Path) -> None:
    folder = save(original(), tmp_path / "encoder")
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"encoder' must be an exported encoder, but {missing} is not in it"):
        encoders.load_encoder(folder)
    with pytest.raises(FileNotFoundError, match=r"nowhere' must be an exported encoder, but config\.json is not in it"):
        encoders.load_encoder(tmp_path / "nowhere")


def damage(folder: Path, what: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if what == "weights":
        (folder / "model.safetensors").write_bytes(b"no weights")
    elif what == "no json":
        path.write_text("{")
    elif what == "architecture":
        path.write_text(json.dumps(config | {"architecture": "unheard_of"}))
    elif what == "no architecture":
        path.write_text("{}")
    elif what == "a list":
        path.write_text("[]")
    else:
        path.write_text(json.dumps(config | {"model_args": config["model_args"] | {"depth": 3}}))


@pytest.mark.parametrize("kind", [original, vit])
@pytest.mark.parametrize("what", ["weights", "no json", "architecture", "no architecture", "a list", "other sizes"])
def test_a_damaged_export_is_one_clear_error(kind, what: str, tmp_path: Path) -> None:
    folder = save(kind(), tmp_path / "encoder")
    damage(folder, what)
    with pytest.raises(ValueError, match=r"encoder' holds no encoder that can be loaded: \w+: ") as caught:
        encoders.load_encoder(folder)
    assert "\n" not in str(caught.value)
