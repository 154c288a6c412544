"""Command line: presets, overrides, what is handed on, and the help text. Wrong input: test_wrong_input.py."""

from pathlib import Path

import pytest
import yaml

from ssl_blocks.cli import load_config, main
from ssl_blocks.cli.arguments import closest_word, list_options
from ssl_blocks.cli.command import fail, list_presets
from ssl_blocks.cli.helptext import help_text
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.pretrain import Run
from ssl_blocks.recipes.randsac import RECIPE, RandSACConfig


def load(*argv: str) -> RandSACConfig:
    return load_config(RECIPE, argv)


def test_preset_gives_all_values_and_overrides_change_them() -> None:
    config = load("--preset", "randsac_digits", "--trainer.epochs", "7", "--optimizer.base_lr", "1e-2")
    written = yaml.safe_load(RECIPE.preset_files()["randsac_digits"].read_text())
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


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--preset", "randsac_digit"), "did you mean 'randsac_digits'.*randsac_cifar_small"),
        (("--preset", "randsac_digits", "--trainer.epoch", "3"), "--trainer.epoch is no known option"),
        (("--preset", "randsac_digits", "--trainer.epochs", "0"), "trainer.epochs=0 must be greater than 0"),
        ((), "name is required"),
    ],
)
def test_mistakes_are_value_errors_of_one_line(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- 1", "must hold a mapping"),
        ("naming: x", "naming is no known field"),
        ("_env_file: x", "_env_file is no known field"),  # an argument of pydantic-settings
    ],
)
def test_preset_that_holds_no_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load("--preset", str(path))


@pytest.mark.parametrize(
    ("spelling", "side"), [("2,1", (2, 1)), ("[2]", (2,)), ("2", (2,))], ids=["comma", "brackets", "alone"]
)
def test_lists_are_read(spelling: str, side: tuple[int, ...]) -> None:
    assert load("--preset", "randsac_digits", "--segments.sides", spelling).segments.sides == side


def test_values_may_begin_with_a_dash_and_none_is_a_value() -> None:
    config = load("--preset", "randsac_digits", "--trainer.knn_every", "None", "--note", "-1 is fine")
    assert config.trainer.knn_every is None
    assert config.note == "-1 is fine"


@pytest.mark.parametrize(
    ("name", "names", "found"),
    [
        ("epoch", ["data.name", "trainer.epochs", "seed"], "trainer.epochs"),
        ("lr", ["optimizer.base_lr", "name"], "optimizer.base_lr"),
        ("decoder.head", ["encoder.heads", "decoder.heads"], "decoder.heads"),
        ("zzz", ["name", "seed"], None),
        ("a", [], None),
    ],
)
def test_nearest_name(name: str, names: list[str], found: str | None) -> None:
    assert closest_word(name, names) == found


class Stage:
    """Stands in for runs: remembers how they were prepared, and ends as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[RandSACConfig, object]] = []
        self.stopped: RunStopped | None = None
        monkeypatch.setattr(Run, "prepare", self.prepare)

    def prepare(self, config: RandSACConfig, assemble: object, *, resume: object = None) -> "Stage":
        self.calls.append((config, resume))
        return self

    def fit(self) -> None:
        if self.stopped is not None:
            raise self.stopped

    def run(self, *argv: str) -> int:
        return main(RECIPE, argv=argv)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    monkeypatch.chdir(tmp_path)
    return Stage(monkeypatch)


def write_run(folder: Path) -> None:
    config = load("--preset", "randsac_digits", "--seed", "7", "--trainer.epochs", "9")
    folder.joinpath("checkpoints").mkdir(parents=True)
    folder.joinpath("checkpoints", "last.ckpt").write_text("weights")
    folder.joinpath("config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))


@pytest.mark.parametrize("named", ["moved/mine", "moved/mine/", "moved/mine/checkpoints/last.ckpt"])
def test_resume_takes_the_runs_values_and_the_place_where_it_lies(stage: Stage, tmp_path: Path, named: str) -> None:
    write_run(tmp_path / "moved" / "mine")
    assert stage.run("--resume", named, "--trainer.devices=1") == 0
    ((config, resume),) = stage.calls
    assert (config.seed, config.trainer.epochs, config.trainer.devices) == (7, 9, 1)
    assert config.folder == Path("moved/mine")
    assert resume == Path(named)


def test_resume_from_inside_the_folder(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "moved" / "mine")
    monkeypatch.chdir(tmp_path / "moved" / "mine")
    assert stage.run("--resume", ".") == 0
    assert stage.calls[0][0].folder.resolve() == tmp_path / "moved" / "mine"


@pytest.mark.parametrize(("argv", "resume"), [((), None), (("--resume",), True)])
def test_without_a_path_the_preset_counts(stage: Stage, argv: tuple[str, ...], resume: object) -> None:
    assert stage.run(*argv, "--preset", "randsac_digits") == 0
    assert stage.calls[0][0].folder == Path("runs/randsac_digits")
    assert stage.calls[0][1] is resume


def test_run_that_stops_is_one_line_and_its_exit_code(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.stopped = RunStopped("stopped at step 7:\ngo on with --resume", exit_code=143)
    assert stage.run("--preset", "randsac_digits") == 143
    assert capsys.readouterr().err == "error: stopped at step 7: go on with --resume\n"


def test_other_processes_stop_in_silence(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (started | {"TORCHELASTIC_RUN_ID": "x", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    stage.stopped = RunStopped("stopped", exit_code=3)
    assert stage.run("--preset", "randsac_digits") == 3
    assert stage.run("--help") == 0
    assert capsys.readouterr() == ("", "")


def test_bugs_are_not_taken_for_wrong_input(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(stage, "fit", fail)
    with pytest.raises(ValueError, match="a bug"):
        stage.run("--preset", "randsac_digits")


@pytest.mark.parametrize("spelling", ["--help", "-h"])
def test_help_explains_everything(spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--preset", "randsac_digits", spelling]
    assert main(RECIPE, argv=argv) == 0
    text = capsys.readouterr().out
    options = list_options(RandSACConfig)
    assert len(options) > 40
    for option in options:
        assert text.count(f"--{option.path} ") + text.count(f"--{option.path}\n") >= 1
        assert option.field.description or option.path.endswith(".kind")
    assert "mae_" not in text
    for name, meaning in list_presets(RECIPE).items():
        assert f"\n  {name} " in text
        assert meaning.split()[0] in text
    for switch in ("--preset", "--resume [PATH]", "--dry-run", "--help"):
        assert f"  {switch}" in text or f", {switch}" in text
    groups = [line.partition(":")[0] for line in text.splitlines() if line and not line.startswith(" ")]
    order = ["run", "data", "encoder", "segments", "decoder", "objective", "optimizer", "trainer"]
    assert [group for group in groups if group in order] == order


def test_load_config_ends_after_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load("--help")
    assert stopped.value.code == 0
    assert "--trainer.epochs" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 110])
def test_help_keeps_to_its_width_and_tells_defaults(width: int) -> None:
    text = help_text(RandSACConfig, presets=list_presets(RECIPE), program="ssl-blocks randsac", width=width)
    options = text[text.index("run:") :]
    assert max(map(len, options.splitlines())) <= width
    flat = " ".join(options.split())
    for part in (
        "--trainer.epochs N passes over the training images (default: 100)",
        "--data.crop_scale X,X share of the area that a random crop keeps (default: 0.2,1.0)",
        "--segments.counts N,... (blob) number of Gaussians",
        "--name TEXT the run's folder below output_dir (required)",
        "--data.flip {true,false} mirror half of the images (default: true)",
        "blob: irregular regions around random Gaussians",
        "optimizer: AdamW with",
    ):
        assert part in flat


def test_a_mistake_is_told_whichever_process_it_is_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fail(FileNotFoundError("no images on\nthis machine"), 2) == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "3")
    assert fail(FileNotFoundError("no images on\nthis machine"), 2) == 2
    assert fail(RunStopped("told already", exit_code=143), 143) == 143
    assert capsys.readouterr().err.splitlines() == [
        "error: no images on this machine",
        "error in another process: no images on this machine",
    ]
