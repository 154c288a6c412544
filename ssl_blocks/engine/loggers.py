"""Loggers by name: the run's own files, services that are told as well, and those of users."""

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ssl_blocks.code import import_named
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.logs import MetricsFile
from ssl_blocks.engine.rank import is_rank_zero
from ssl_blocks.engine.settings import SERVICES
from ssl_blocks.files import atomically, read_json

PROJECT = "ssl_blocks"
PLACES = "loggers.json"  # where services keep the run, so that it goes on there
PATIENCE = 3  # errors in a row after which a logger is left alone


def open_loggers(
    words: Sequence[str],
    folder: Path,
    *,
    resumed_step: int = 0,
    hyperparameters: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = print,
) -> list[Logger]:
    """Open the loggers of a run, and tell a new run's hyper-parameters to each.

    Services and loggers of users are opened in the first process alone. Where a run goes on, they go on, too, as far as
    they can: ``loggers.json`` in its folder names their place. What fails later on is told, and costs the run nothing.

    Args:
        words: names, or ``MODULE:FUNCTION`` of functions that take the run's folder and return a Lightning logger.
        folder: of the run.
        resumed_step: at which it goes on; 0: a new run.
        hyperparameters: plain values, in sections.
        tell: called with a line for the user.

    Raises:
        RunStopped: if one cannot be opened.
    """
    opened: list[Logger] = []
    if is_rank_zero():
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # whatever rank was left over in the environment
    for word in words:
        if word == "csv":
            opened.append(MetricsFile(folder / "metrics.csv", resumed_step=resumed_step))
        elif word == "tensorboard":
            opened.append(TensorBoardLogger(folder, name="", version=word, purge_step=resumed_step or None))
        elif is_rank_zero():
            try:
                inner = _make(word, folder, hyperparameters or {})
                _ = getattr(inner, "experiment", None)  # else it would be opened amid training
            except Exception as error:  # whatever a service may raise
                raise RunStopped(f"trainer.loggers: {word} could not be opened: {_reason(error)}") from error
            opened.append(SparedLogger(word, inner, tell))
    if hyperparameters is not None and not resumed_step:
        for logger in opened:
            logger.log_hyperparams(dict(hyperparameters))
    return opened


def log_picture(loggers: Sequence[Logger], name: str, path: Path, step: int) -> None:
    """Show a PNG to the loggers that take pictures: TensorBoard, and those with Lightning's ``log_image``."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            import numpy as np
            from PIL import Image

            logger.experiment.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            logger.log_image(name, [str(path)], step)


class SparedLogger(Logger):
    """A logger of the first process, whose errors are a line for the user; after some in a row it is left alone.

    ``word`` is what the user calls it.
    """

    def __init__(self, word: str, inner: Logger, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.word, self.inner, self.tell, self.failures = word, inner, tell, 0

    name = property(lambda self: self.word)
    version = property(lambda self: "")  # asking the inner one may take a network

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Hand on."""
        self._spared(lambda: self.inner.log_hyperparams(*args, **kwargs))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Hand on plain numbers."""
        self._spared(lambda: self.inner.log_metrics({name: float(value) for name, value in metrics.items()}, step))

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Hand on, where the logger takes pictures."""
        show = getattr(self.inner, "log_image", None)
        if show is not None:
            self._spared(lambda: show(key, images, step=step))

    def save(self) -> None:
        """Hand on."""
        self._spared(self.inner.save)

    def finalize(self, status: str) -> None:
        """Hand on, and close what a program would else close at its end: it may train again."""
        self._spared(lambda: self.inner.finalize(status))
        inner = self.inner
        if isinstance(inner, WandbLogger):
            self._spared(lambda: inner.experiment.finish())

    def _spared(self, call: Callable[[], object]) -> None:
        if self.failures >= PATIENCE:
            return
        try:
            call()
        except Exception as error:  # whatever a service may raise
            self.failures += 1
            if self.failures in (1, PATIENCE):
                left = "; it is left alone from here on" if self.failures == PATIENCE else ""
                self.tell(f"warning: trainer.loggers: {self.word}: {_reason(error)}{left}")
        else:
            self.failures = 0


class TrackioLogger(Logger):
    """Trackio, which Lightning has no logger for; a run of that name is gone on with."""

    def __init__(self, project: str, run: str, config: Mapping[str, Any]) -> None:
        import trackio

        super().__init__()
        self.project, self.run = project, run
        self.experiment = trackio.init(project=project, name=run, config=dict(config), resume="allow")

    name = property(lambda self: self.project)
    version = property(lambda self: self.run)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The run began with them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row."""
        self.experiment.log(dict(metrics), step=step)

    def finalize(self, status: str) -> None:
        """Have everything sent."""
        self.experiment.finish()


def _make(word: str, folder: Path, hyperparameters: Mapping[str, Any]) -> Logger:
    if word not in SERVICES:
        made = import_named(word)(folder)
        if not isinstance(made, Logger):
            raise TypeError(f"it must return a Lightning logger, got {type(made).__name__}")
        return made
    places = read_json(folder / PLACES) if (folder / PLACES).is_file() else {}
    place = places.get(word)
    if word == "mlflow":
        logger: Logger = MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            run_name=folder.name,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"),
            save_dir=str(folder / "mlruns"),
            run_id=place,
        )
        place = logger.version  # which begins the run
    elif word == "wandb":
        place = place or secrets.token_hex(4)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        logger = WandbLogger(name=folder.name, save_dir=folder, project=project, id=place)
    else:
        place = place or f"{folder.name}-{secrets.token_hex(3)}"
        logger = TrackioLogger(PROJECT, place, hyperparameters)
    with atomically(folder / PLACES) as temporary:
        temporary.write_text(json.dumps(places | {word: place}, indent=2) + "\n")
    return logger


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
