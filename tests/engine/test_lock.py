"""Two runs never write into one folder at the same time, and a killed one stands in nobody's way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.lock import LOCK, locked
from ssl_blocks.pretrain.resume import is_free
from tests.pretrain.small import prepare

HOLD = """
import sys
from pathlib import Path
from ssl_blocks.engine.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path):
    """A process that has the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def holder(folder: Path, **changes: object) -> None:
    with locked(folder):
        ours = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps(ours | changes))


@pytest.mark.process
def test_the_second_run_is_refused_until_the_first_has_ended_or_was_killed(tmp_path: Path, other) -> None:
    before = (tmp_path / LOCK).read_text()
    with (
        pytest.raises(RunStopped, match=f"being written by another run, process {other.pid} on ") as end,
        locked(tmp_path),
    ):
        pass
    assert end.value.exit_code == 2
    assert (tmp_path / LOCK).read_text() == before
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / LOCK).is_file()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_a_run_in_a_locked_folder_writes_nothing(tmp_path: Path) -> None:
    run = prepare(tmp_path)
    holder(tmp_path / "run", pid=os.getppid(), started=_started(os.getppid()))
    with pytest.raises(RunStopped, match="run is being written by another run"):
        run.fit()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    (tmp_path / "run" / LOCK).unlink()
    run.fit()
    assert not (tmp_path / "run" / LOCK).exists()


def _started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_a_process_of_the_same_number_that_began_later_is_another(tmp_path: Path) -> None:
    holder(tmp_path, pid=os.getppid(), started="1")
    with locked(tmp_path):
        pass
    holder(tmp_path, pid=os.getppid(), started=_started(os.getppid()))
    with pytest.raises(RunStopped), locked(tmp_path):
        pass


def test_of_another_host_nothing_is_known_unless_the_job_was_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder(tmp_path, host="elsewhere", pid=1, job="77")
    with (
        pytest.raises(RunStopped, match=rf"process 1 on elsewhere: .*if it has ended, delete .*{LOCK}"),
        locked(tmp_path),
    ):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with locked(tmp_path):
        pass


def test_a_lock_cut_short_holds_nothing_and_alone_is_no_run(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text('{"host": "')
    assert is_free(tmp_path)
    with locked(tmp_path):
        pass


def test_only_the_process_that_writes_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with locked(tmp_path), locked(None):
        assert not list(tmp_path.iterdir())
