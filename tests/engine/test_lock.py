"""Two runs never write into one folder at the same time, and a killed one stands in nobody's way."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_blocks import files
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.lock import LOCK, locked
from ssl_blocks.evaluate.results import add_entry
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


def contend(folder: Path, found) -> None:
    """Take the folder again and again; inside, nobody else may be."""
    won = lost = 0
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        try:
            with locked(folder):
                (folder / "inside").open("x").close()
                time.sleep(0.0005)
                (folder / "inside").unlink()
                won += 1
        except RunStopped:
            lost += 1
    found.put((won, lost))


def add(folder: Path, found) -> None:
    for number in range(20):
        add_entry(folder / "results.json", {"number": number, "process": os.getpid()})
    found.put((20, 0))


def together(work, folder: Path) -> list[tuple[int, int]]:
    """What came of it in three processes at a time; one that fails is missing."""
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    processes = [context.Process(target=work, args=(folder, found)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    return [found.get(timeout=10) for _ in processes]


@pytest.mark.process
def test_of_starts_in_one_instant_one_wins_and_the_others_say_so(tmp_path: Path) -> None:
    counts = together(contend, tmp_path)
    assert all(won and lost for won, lost in counts)
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_removed_while_one_waits_for_it_is_not_taken_for_the_one_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def another_is_faster(*_: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
            text = {"host": socket.gethostname(), "pid": os.getppid(), "started": _started(os.getppid()), "job": None}
            (tmp_path / LOCK).write_text(json.dumps(text))

    monkeypatch.setattr(files.fcntl, "flock", another_is_faster)
    with pytest.raises(RunStopped, match=f"process {os.getppid()} on"), locked(tmp_path):
        pass
    assert len(calls) == 2


@pytest.mark.process
def test_evaluations_at_the_same_time_lose_no_entry(tmp_path: Path) -> None:
    together(add, tmp_path)
    entries = json.loads((tmp_path / "results.json").read_text())["evaluations"]
    assert len(entries) == len({(entry["number"], entry["process"]) for entry in entries}) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_without_locks_of_files_a_lock_that_is_there_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "HAS_LOCKS", False)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())
    holder(tmp_path, pid=99999999)  # killed long ago
    with pytest.raises(RunStopped, match=f"if it has ended, delete .*{LOCK}"), locked(tmp_path):
        pass
    (tmp_path / LOCK).unlink()
    with files.alone_with(tmp_path / "a"):
        assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]
    (tmp_path / ".a.lock").touch()
    with (
        pytest.raises(OSError, match=r"\.a\.lock is in the way: delete it"),
        files.alone_with(tmp_path / "a", patience=0.0),
    ):
        pass


def test_a_lock_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssl_blocks.engine.lock.json.dumps", full)
    with pytest.raises(OSError, match="No space left"), locked(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_only_the_process_that_writes_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with locked(tmp_path), locked(None):
        assert not list(tmp_path.iterdir())
