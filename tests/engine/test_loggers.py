"""Loggers by name: opened before training, told everything, gone on with, and never a run's end."""

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from ssl_blocks.engine import loggers
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.loggers import log_picture, open_loggers
from ssl_blocks.engine.logs import MetricsFile
from ssl_blocks.engine.settings import TrainerConfig

OPTIONS = {"optimizer": {"lr": 0.5}, "name": "run"}


class Noted(Logger):
    """Notes what it is told."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.calls = folder, []

    @property
    def name(self) -> str:
        return "noted"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, params: Any, *_: Any) -> None:
        self.calls.append(("options", dict(params)))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls.append(("metrics", dict(metrics), step))

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.calls.append(("image", key, images, step))

    def save(self) -> None:
        self.calls.append(("save",))

    def finalize(self, status: str) -> None:
        self.calls.append(("end", status))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A user's module, with functions that make loggers."""
    module = types.ModuleType("own_loggers")
    module.make = Noted
    module.none = lambda folder: "a logger"
    monkeypatch.setitem(sys.modules, "own_loggers", module)
    return module


def test_a_logger_of_ones_own_gets_the_folder_and_everything(own: types.ModuleType, tmp_path: Path) -> None:
    (logger,) = open_loggers(["own_loggers:make"], tmp_path, hyperparameters=OPTIONS)
    logger.log_metrics({"loss": np.float32(0.5)}, 3)
    log_picture([logger], "look", tmp_path / "a.png", 3)
    logger.save()
    logger.finalize("success")
    assert logger.inner.folder == tmp_path
    assert logger.inner.calls == [
        ("options", OPTIONS),
        ("metrics", {"loss": 0.5}, 3),
        ("image", "look", [str(tmp_path / "a.png")], 3),
        ("save",),
        ("end", "success"),
    ]


def test_a_run_that_goes_on_does_not_tell_its_options_again(own: types.ModuleType, tmp_path: Path) -> None:
    (logger,) = open_loggers(["own_loggers:make"], tmp_path, hyperparameters=OPTIONS, resumed_step=4)
    assert logger.inner.calls == []


def test_own_files_go_on_where_the_run_does(tmp_path: Path) -> None:
    csv, board = open_loggers(["csv", "tensorboard"], tmp_path, resumed_step=7)
    assert isinstance(csv, MetricsFile)
    assert csv.path == tmp_path / "metrics.csv"
    assert isinstance(board, TensorBoardLogger)
    assert board.log_dir == str(tmp_path / "tensorboard")
    assert board._kwargs["purge_step"] == 7
    assert open_loggers([], tmp_path) == []


def test_pictures_come_to_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (5, 3), "red").save(tmp_path / "a.png")
    csv, board = open_loggers(["csv", "tensorboard"], tmp_path, hyperparameters=OPTIONS)
    log_picture([csv, board], "look", tmp_path / "a.png", 3)
    board.finalize("success")
    (image,) = EventAccumulator(board.log_dir).Reload().Images("look")
    assert (image.step, image.width, image.height) == (3, 5, 3)
    assert "lr: 0.5" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()


def test_what_a_logger_raises_is_told_and_some_in_a_row_are_enough(
    own: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    (logger,) = open_loggers(["own_loggers:make"], tmp_path, tell=told.append)
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise ConnectionError("no\nnetwork")

    with monkeypatch.context() as patch:
        patch.setattr(Noted, "log_metrics", fail)
        logger.log_metrics({"loss": 1.0}, 0)
        logger.log_metrics({"loss": 1.0}, 1)
    logger.log_metrics({"loss": 1.0}, 2)  # it is back
    assert logger.inner.calls == [("metrics", {"loss": 1.0}, 2)]
    assert told == ["warning: trainer.loggers: own_loggers:make: ConnectionError: no network"]
    monkeypatch.setattr(Noted, "log_metrics", fail)
    for step in range(9):
        logger.log_metrics({"loss": 1.0}, step)
    assert calls == 2 + loggers.PATIENCE
    assert [line.endswith("it is left alone from here on") for line in told] == [False, False, True]


def test_what_is_no_logger_or_cannot_be_opened_stops_before_training(
    own: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunStopped, match=r"own_loggers:none could not be opened: TypeError: it must return a"):
        open_loggers(["own_loggers:none"], tmp_path)

    def fail(*_: object) -> None:
        raise ConnectionError("no network")

    own.make = fail
    with pytest.raises(RunStopped, match=r"own_loggers:make could not be opened: ConnectionError: no network"):
        open_loggers(["own_loggers:make"], tmp_path)


def test_other_processes_tell_no_service(
    own: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "is_rank_zero", lambda: False)
    assert [type(logger) for logger in open_loggers(["own_loggers:make", "csv"], tmp_path)] == [MetricsFile]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("wandbb",), r"must be of csv, tensorboard, wandb, mlflow, trackio or MODULE:FUNCTION, but 'wandbb' is none"),
        (("csv", "csv"), r"but no two may be the same"),
    ],
)
def test_names_that_are_none_are_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig(loggers=given)


def test_what_is_not_installed_or_not_there_is_refused_at_the_door(own: types.ModuleType) -> None:
    TrainerConfig(loggers=("csv", "tensorboard", "wandb", "own_loggers:make")).check_loggers()
    with pytest.raises(ValueError, match=re.escape("mlflow is not installed: pip install 'ssl_blocks[mlflow]'")):
        TrainerConfig(loggers=("mlflow",)).check_loggers()
    with pytest.raises(ValueError, match=r"trainer.loggers: 'own_loggers:other' cannot be imported"):
        TrainerConfig(loggers=("own_loggers:other",)).check_loggers()


def test_mlflow_goes_on_with_the_run_that_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Flow(Noted):
        version = "run-7"

        def __init__(self, **options: Any) -> None:
            super().__init__(tmp_path)
            made.append(options)

    monkeypatch.setattr(loggers, "MLFlowLogger", Flow)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "mine"
    for step in (0, 5):
        open_loggers(["mlflow"], folder, resumed_step=step, hyperparameters=OPTIONS)
    assert [options["run_id"] for options in made] == [None, "run-7"]
    assert made[0]["run_name"] == "mine"
    assert made[0]["save_dir"] == str(folder / "mlruns")
    assert json.loads((folder / "loggers.json").read_text()) == {"mlflow": "run-7"}


def test_trackio_goes_on_with_the_run_that_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Run:
        def __init__(self, **options: Any) -> None:
            self.calls: list[Any] = [options]

        def log(self, metrics: dict[str, float], step: int) -> None:
            self.calls.append((metrics, step))

        def finish(self) -> None:
            self.calls.append("end")

    module = types.ModuleType("trackio")
    module.init = Run
    monkeypatch.setitem(sys.modules, "trackio", module)
    (first,) = open_loggers(["trackio"], tmp_path / "mine", hyperparameters=OPTIONS)
    first.log_metrics({"loss": 0.5}, 3)
    first.finalize("success")
    (second,) = open_loggers(["trackio"], tmp_path / "mine", hyperparameters=OPTIONS, resumed_step=4)
    began, *rest = first.inner.experiment.calls
    assert rest == [({"loss": 0.5}, 3), "end"]
    assert began == {"project": "ssl_blocks", "name": began["name"], "config": OPTIONS, "resume": "allow"}
    assert began["name"].startswith("mine-")
    assert second.inner.experiment.calls[0]["name"] == began["name"]
    (other,) = open_loggers(["trackio"], tmp_path / "elsewhere" / "mine")
    assert other.inner.experiment.calls[0]["name"] != began["name"]


@pytest.mark.process
def test_wandb_keeps_a_run_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    Image.new("RGB", (5, 3), "red").save(tmp_path / "a.png")
    (tmp_path / "loggers.json").write_text('{"wandb": "run7"}')  # as a run that goes on finds it
    (logger,) = open_loggers(["wandb"], tmp_path, hyperparameters=OPTIONS)
    run = logger.inner.experiment
    logger.log_metrics({"loss": 0.5}, 0)
    log_picture([logger], "look", tmp_path / "a.png", 0)
    assert run.config["optimizer"]["lr"] == 0.5
    assert run.summary["loss"] == 0.5
    assert (run.id, run.project, run.name) == ("run7", "mine", tmp_path.name)
    logger.finalize("success")
    assert json.loads((tmp_path / "loggers.json").read_text()) == {"wandb": "run7"}
    assert list((tmp_path / "wandb").rglob("media/images/look*.png"))
