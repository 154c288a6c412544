"""Recipes go on from an exported encoder: by its folder, with its sizes, or not at all."""

import shutil
from pathlib import Path

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.cli import load_config, main
from ssl_blocks.data import ImageData, ImageShape
from ssl_blocks.encoders import export_encoder, timm_vit
from ssl_blocks.pretrain import EncoderConfig, Run
from ssl_blocks.recipes import RECIPES
from ssl_blocks.recipes.mae import RECIPE
from tests.pretrain.small import BARE

DATA = ImageData.stand_in(ImageShape(3, 16, 16))
SMALL = [
    "--name=on",
    "--data.name=digits",
    "--data.image_size=16",
    "--data.channels=3",
    "--data.max_train=64",
    "--data.max_test=20",
    "--decoder.depth=1",
    "--decoder.width=16",
    "--decoder.heads=2",
    "--optimizer.batch_size=32",
    "--optimizer.warmup_epochs=0.5",
    "--trainer.epochs=1",
    "--trainer.device=cpu",
    *BARE,
]


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder with a patch, a class token and positions that are no recipe's defaults."""
    torch.manual_seed(0)
    size = {"image_size": 16, "patch_size": 2, "depth": 2, "embed_dim": 16, "num_heads": 2}
    encoder = timm_vit(class_token=True, positions="learned", **size)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=2)
    half = (0.5, 0.5, 0.5)
    folder = tmp_path_factory.mktemp("old")
    return f"local-dir:{export_encoder(encoder, folder / 'old', tokenizer=tokenizer, mean=half, std=half)}"


def state_of(name: str) -> dict[str, torch.Tensor]:
    return timm_vit(name, image_size=16, pretrained=True).module.state_dict()


def options(tmp_path: Path, name: str, *more: str) -> list[str]:
    return [*SMALL, f"--output_dir={tmp_path}", f"--encoder.name={name}", "--encoder.pretrained=true", *more]


def test_a_run_goes_on_from_a_folder_and_leaves_another(tmp_path: Path, name: str) -> None:
    config = load_config(RECIPE, options(tmp_path, name))
    run = Run.prepare(config, RECIPE.assemble)
    encoder = run.module.objective.encoder
    assert (encoder.patch, encoder.num_prefix, encoder.module.pos_embed.requires_grad) == ((2, 2), 1, True)
    before = state_of(name)
    assert all(torch.equal(value, before[key]) for key, value in encoder.module.state_dict().items())
    after = state_of(f"local-dir:{run.fit() / 'encoder'}")
    assert after.keys() == before.keys()
    assert all(not torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.parametrize("recipe", ["randsac", "mae", "saim", "combined", "esvit"])
def test_each_recipe_starts_from_the_weights(recipe: str, tmp_path: Path, name: str) -> None:
    argv = ["--name=on", f"--encoder.name={name}", "--encoder.pretrained=true"]
    heads = {"randsac": ["--decoder.heads=2"], "mae": ["--decoder.heads=2", "--decoder.width=16"]}
    argv += heads.get(recipe, []) + (
        ["--encoder.kind=vit", "--head.out_dim=8", "--head.hidden=8"] if recipe == "esvit" else []
    )
    argv += ["--decoder.heads=2"] if recipe == "combined" else []
    objective = RECIPES[recipe].assemble(load_config(RECIPES[recipe], argv), DATA)
    state, found = state_of(name), objective.export_encoder().module.state_dict()
    assert state.keys() == found.keys()
    assert all(torch.equal(value, state[key]) for key, value in found.items())


@pytest.mark.parametrize("preset", ["mae_cifar_small", "mae_cifar10"])
def test_a_preset_that_contradicts_the_weights_is_told(preset: str, tmp_path: Path, name: str) -> None:
    argv = [f"--preset={preset}", "--name=on", f"--encoder.name={name}", "--encoder.pretrained=true"]
    config = load_config(RECIPE, argv)
    with pytest.raises(ValueError, match=r"encoder: embed_dim=\d+ contradicts the pretrained .* has embed_dim=16"):
        RECIPE.assemble(config, DATA)
    free = [f"--encoder.{part}=None" for part in ("width", "depth", "heads", "patch_size")]
    config = load_config(RECIPE, [*argv, *free, "--decoder.heads=2"])
    assert RECIPE.assemble(config, DATA).encoder.patch == (2, 2)


@pytest.mark.parametrize("tagged", ["vit_tiny_patch16_224.augreg_in21k", "hf-hub:timm/vit", "local-dir:runs/x/encoder"])
def test_a_name_of_weights_loads_them_unless_told_otherwise(tagged: str) -> None:
    assert EncoderConfig(name=tagged).loads
    assert not EncoderConfig(name=tagged, pretrained=False).loads
    assert not EncoderConfig().loads
    assert EncoderConfig(pretrained=True).loads


def test_a_folder_alone_is_gone_on_from(tmp_path: Path, name: str) -> None:
    argv = [option for option in options(tmp_path, name) if "pretrained" not in option]
    encoder = RECIPE.assemble(load_config(RECIPE, argv), DATA).encoder
    assert all(torch.equal(value, state_of(name)[key]) for key, value in encoder.module.state_dict().items())
    fresh = RECIPE.assemble(load_config(RECIPE, [*argv, "--encoder.pretrained=false", "--encoder.patch_size=4"]), DATA)
    assert not torch.equal(fresh.encoder.module.norm.weight, state_of(name)["norm.weight"])


def test_swin_goes_on_from_its_weights_in_esvit(tmp_path: Path) -> None:
    size = {"patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}
    old = sb.encoders.timm_regions(image_size=16, **size)
    with torch.no_grad():
        for parameter in old.module.parameters():
            parameter.add_(torch.randn_like(parameter))
    folder = export_encoder(old, tmp_path / "old", tokenizer=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    argv = ["--name=on", f"--encoder.name=local-dir:{folder}", "--crops.local_size=8", "--head.out_dim=8"]
    recipe = RECIPES["esvit"]
    found = recipe.assemble(load_config(recipe, argv), DATA).export_encoder().module.state_dict()
    state = old.module.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    with pytest.raises(
        ValueError, match=r"encoder: name='local-dir:.*: its pretrained weights cannot be loaded: .*size"
    ):
        recipe.assemble(load_config(recipe, [*argv, "--encoder.width=16"]), DATA)


def test_another_patch_size_is_taken_if_it_is_given(name: str) -> None:
    encoder = EncoderConfig(name=name, pretrained=True, patch_size=4).build(image_size=16, channels=3)
    assert (encoder.patch, str(encoder.grid)) == ((4, 4), "4x4")


def test_without_pretrained_weights_the_defaults_are_as_ever() -> None:
    encoder = EncoderConfig(depth=1, width=16, heads=2).build(image_size=64, channels=3)
    assert (encoder.patch, encoder.num_prefix) == ((16, 16), 0)  # the name's
    assert torch.equal(encoder.module.pos_embed[0], sb.parts.sincos_table(sb.Grid(4, 4), 16))
    assert not encoder.module.pos_embed.requires_grad


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--encoder.name=local-dir:nowhere", "encoder: name='local-dir:nowhere' must name the folder of a model"),
        ("--encoder.heads=4", "encoder: num_heads=4 contradicts the pretrained 'local-dir:"),
        ("--encoder.class_token=false", "encoder: class_token=False contradicts the pretrained 'local-dir:"),
        ("--encoder.positions=sincos", "encoder: positions='sincos' would overwrite those of pretrained=True"),
    ],
)
def test_mistakes_are_one_line(
    option: str, message: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [o for o in options(tmp_path, name) if o.partition("=")[0] != option.partition("=")[0]]
    assert main(RECIPE, argv=[*given, option]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "on").exists()


def test_a_dry_run_needs_no_weights(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    old = shutil.copytree(name.partition(":")[2], tmp_path / "old")
    (old / "model.safetensors").unlink()
    assert main(RECIPE, argv=[*options(tmp_path, f"local-dir:{old}"), "--dry-run"]) == 0
    assert "pretrained: true" in capsys.readouterr().out
