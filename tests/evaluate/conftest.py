"""A small finished run, which every test copies."""

import shutil
from pathlib import Path

import pytest

from tests.pretrain.small import config, prepare as prepare_run

SHORT = (
    "--trainer.score=true",
    "--trainer.epochs=1",
    "--optimizer.base_lr=0.05",  # in few steps far enough from where it began
    "--optimizer.warmup_epochs=0.5",
    "--data.max_train=200",
    "--data.max_test=50",
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    prepare_run(folder, *SHORT).fit()
    return config(folder, *SHORT).folder


@pytest.fixture(autouse=True)
def _few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_blocks.data.pairs.NUM_SHAPES", (32, 16))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / "run"))
