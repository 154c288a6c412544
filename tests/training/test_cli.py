"""Command line: presets, overrides, and one readable line per mistake."""

from pathlib import Path

import pytest
import yaml

from ssl_blocks.training import load_config, main
from ssl_blocks.training.cli import field_paths, read_preset
from tests.examples import CONFIGS, RandSACConfig, assemble


def load(*argv: str) -> RandSACConfig:
    return load_config(RandSACConfig, argv, presets=CONFIGS)


def test_preset_gives_all_values_and_overrides_change_them() -> None:
    config = load("--preset", "randsac_digits", "--trainer.epochs", "7", "--optimizer.base_lr", "1e-2")
    written = yaml.safe_load((CONFIGS / "randsac_digits.yaml").read_text())
    assert config.trainer.epochs == 7
    assert config.optimizer.base_lr == 1e-2
    assert config.encoder.width == written["encoder"]["width"]
    assert config.trainer.knn_every == written["trainer"]["knn_every"]


def test_override_may_stand_before_the_preset() -> None:
    assert load("--trainer.epochs=7", "--preset=randsac_digits").trainer.epochs == 7


def test_preset_may_be_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntrainer: {epochs: 3}\n")
    config = load("--preset", str(path))
    assert (config.name, config.trainer.epochs) == ("mine", 3)


def test_another_kind_of_segments_puts_the_presets_sides_away() -> None:
    config = load("--preset", "randsac_digits", "--segments.kind", "blob", "--segments.counts", "7,3")
    assert config.segments.kind == "blob"
    assert config.segments.counts == (7, 3)


def test_same_kind_keeps_what_the_preset_said() -> None:
    config = load("--preset", "randsac_digits", "--data.max_train", "64")
    assert config.data.name == "digits"
    assert config.data.max_train == 64


def test_environment_has_no_influence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "hijacked")
    monkeypatch.setenv("SEED", "17")
    assert load("--preset", "randsac_digits").name == "randsac_digits"
    assert load("--preset", "randsac_digits").seed == 0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_is_valid_and_carries_its_own_name(path: Path) -> None:
    assert load("--preset", path.stem).name == path.stem


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--preset", "randsac_digit"), "did you mean 'randsac_digits'.*randsac_cifar_small"),
        (("--preset", "nowhere.yaml"), "'nowhere.yaml' is neither a preset nor a YAML file"),
        (
            ("--preset", "randsac_digits", "--trainer.epoch", "3"),
            "--trainer.epoch is no known option.*--trainer.epochs",
        ),
        (("--preset", "randsac_digits", "--trainer.epochs", "0"), "trainer.epochs='0': .*greater than 0"),
        (("--preset", "randsac_digits", "--trainer.epochs", "many"), "trainer.epochs='many': .*integer"),
        (("--preset", "randsac_digits", "--trainer.precision", "fp8"), "fp8"),
        (("--preset", "randsac_digits", "--segments.kind", "hexagon"), "hexagon"),
        (("--preset", "randsac_digits", "--name", "a/b"), "name='a/b'"),
        (("--preset", "randsac_digits", "--optimizer.weight_decay", "-1"), "optimizer.weight_decay='-1'"),
        ((), "name: is required"),
    ],
)
def test_each_mistake_names_option_value_and_expectation(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(*argv)
    assert "\n" not in str(caught.value)


def test_unknown_field_in_a_preset_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\noptimizer: {learning_rate: 1}\n")
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: is no known field"):
        load("--preset", str(path))


@pytest.mark.parametrize(("text", "message"), [("name: [", "not valid YAML"), ("- 1", "must hold a mapping")])
def test_preset_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_preset(str(path), CONFIGS)


def test_help_documents_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--preset" in text
    paths = field_paths(RandSACConfig)
    assert len(paths) > 30
    for path in paths:
        assert f"--{path}" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--segments.sides", "3"), "sides=(3,) must divide the grid 4x4"),
        (("--segments.kind", "blob", "--segments.counts", "3,7"), "counts=(3, 7) must fall"),
        (("--segments.sides", "[4]"), "nothing is left to predict"),
        (("--encoder.patch_size", "3"), "patch_size=3 must divide image_size=(8, 8)"),
        (("--encoder.heads", "5"), "num_heads=5 must divide embed_dim=64"),
        (
            ("--preset", "randsac_cifar_small", "--data.name", "digits", "--encoder.width", "100"),
            "num_heads=3 must divide",
        ),
        (("--decoder.heads", "5"), "num_heads=5 must divide dim=64"),
        (("--encoder.name", "vit_tiny_patch17"), "encoder: name='vit_tiny_patch17' is no timm model"),
        (("--encoder.name", "beit_base_patch16_224"), "relative position biases"),
        (("--encoder.name", "swin_tiny_patch4_window7_224"), "relative position biases"),
        (("--encoder.name", "resnet18"), "encoder: ResNet is not a timm VisionTransformer"),
        (("--encoder.name", "vit_tiny_r_s16_p8_224"), "stem, which mixes pixels"),
        (("--data.name", "digit"), "data: name='digit' must be one of digits, cifar10"),
        (("--data.name", "imagefolder:nowhere"), "nowhere"),
        (("--optimizer.batch_size", "5000"), "batch_size=5000"),
        (("--data.crop_scale", "0.5,2"), "data.crop_scale: scale=(0.5, 2.0) must be"),
        (("--optimizer.warmup_epochs", "1000"), "warmup_epochs"),
        (("--trainer.device", "cuda"), "trainer.device='cuda' needs a CUDA GPU"),
        (("--bogus", "1"), "--bogus is no known option"),
    ],
)
def test_wrong_wish_is_one_line_and_exit_code_2_and_writes_nothing(
    argv: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    runs = tmp_path / "runs"
    code = main(
        RandSACConfig,
        assemble,
        presets=CONFIGS,
        argv=["--preset", "randsac_digits", "--output_dir", str(runs), *argv],
    )
    printed = capsys.readouterr()
    assert code == 2
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert not runs.exists()


def test_empty_folder_of_images_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    argv = ["--preset", "randsac_digits", "--data.name", f"imagefolder:{tmp_path / 'empty'}"]
    assert main(RandSACConfig, assemble, presets=CONFIGS, argv=argv) == 2
    assert str(tmp_path / "empty") in capsys.readouterr().err


def test_folder_that_holds_a_run_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "randsac_digits" / "metrics.csv"
    old.parent.mkdir()
    old.write_text("precious")
    argv = ["--preset", "randsac_digits", "--output_dir", str(tmp_path)]
    assert main(RandSACConfig, assemble, presets=CONFIGS, argv=argv) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert [p.name for p in old.parent.iterdir()] == ["metrics.csv"]
    assert old.read_text() == "precious"
