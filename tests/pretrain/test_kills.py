"""A run that is killed again and again ends in the same bits; in a file of its own, for it takes long."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretrain.small import differences, final, prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return prepare(tmp_path_factory.mktemp("whole")).fit()


@pytest.mark.process
def test_killed_again_and_again_a_run_ends_in_the_same_bits(whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "pretrain" / "kill_loop.py"), str(tmp_path), "8", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    killed = [line for line in done.stdout.splitlines() if "signal 9" in line]
    assert len(killed) > 4, done.stdout
    assert sum("operation None" not in line for line in killed) > 2, done.stdout  # amid file operations
    ended = [*tmp_path.glob("finished-*"), tmp_path / "run"]
    for folder in ended:
        assert differences(final(whole), final(folder)) == []
        assert (folder / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert not list((tmp_path / "run").rglob("*.tmp"))
