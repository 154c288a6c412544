"""Settings and fixtures that all tests share."""

import functools
import gc
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# small tensors: threads only wait for each other, here and in the processes that tests start
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

import tests.shapes  # noqa: F401 - before the package is imported, whose functions it has checked

ROOT = Path(__file__).parents[1]
# fixtures that one worker makes for the whole suite
SHARED = {"divided": "two processes", "bare": "bare processes"}

# what takes long although it may start no process; `make quick` does not even collect it
LONG = (
    *("tests/benchmarks", "tests/deploy", "tests/evaluate", "tests/gallery", "tests/pretrain"),
    "tests/test_custom_objective.py",
    *(f"tests/encoders/test_{name}.py" for name in ("card", "eva", "pretrained", "regions", "resizing", "storage")),
    *(f"tests/encoders/test_{name}.py" for name in ("tracing", "transformers", "untrained")),
    *(f"tests/evaluation/test_{name}.py" for name in ("dense", "finetune", "linear", "segmentation")),
    *(f"tests/objectives/test_{name}.py" for name in ("distillation", "puzzle", "saim", "two_stream")),
    "tests/test_docs.py",
)

torch.set_num_threads(1)
for kind in (torch.cuda, torch.xpu, torch.mtia):
    if not kind.is_available():  # else torch.manual_seed writes the whole stack down for devices that are not there
        kind.manual_seed_all = lambda seed: None
gc.disable()  # what imports and collection make stays to the end: no use in looking through it again and again

settings.register_profile("ssl_blocks", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("ssl_blocks")


@functools.cache
def takes_long(path: Path) -> bool:
    """Whether a file or folder is one of those that `make quick` leaves out."""
    return any(path.is_relative_to(ROOT / name) for name in LONG)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what takes long where that is asked for."""
    return True if config.option.markexpr == "not process" and takes_long(collection_path) else None


@pytest.hookimpl(tryfirst=True)  # before tests are selected by mark, and before xdist reads groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay with one worker, as do those that share a process; what takes longest starts first."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        shared = [name for name in SHARED if name in getattr(item, "fixturenames", ())]
        if shared or takes_long(item.path):
            item.add_marker("process")
        groups.setdefault(SHARED[shared[0]] if shared else str(item.path.relative_to(ROOT)), []).append(item)
    for name, members in groups.items():
        for item in members:
            item.add_marker(pytest.mark.xdist_group(name))

    def urgency(name: str) -> int:
        return 0 if name in SHARED.values() else 2 - any(item.get_closest_marker("process") for item in groups[name])

    items[:] = [item for name in sorted(groups, key=urgency) for item in groups[name]]


def pytest_collection_finish() -> None:
    """Look out for garbage from here on, among what is new."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.fixture
def generator() -> torch.Generator:
    """A source of randomness that is the same in every run and shared with no other test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def numbers_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no number there at once, as on a GPU: it has its value, but has to be asked for later."""
    from ssl_blocks.engine import late

    class NotYet(late.Readout):
        def __init__(self, numbers: late.Numbers) -> None:
            super().__init__(numbers)
            self.known, self.is_there = super().read(), False

        def read(self) -> dict[str, float]:
            return self.known

    monkeypatch.setattr(late, "Readout", NotYet)


@pytest.fixture(scope="session")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes made: one folder for each part of tests/two_processes.py."""
    from tests.two_processes import launch

    folder = tmp_path_factory.mktemp("divided")
    log = folder / "log.txt"
    process = multiprocessing.get_context("fork").Process(target=launch, args=(folder, log))
    process.start()
    process.join(timeout=300)
    process.kill()
    assert process.exitcode == 0, log.read_text()[-6000:]
    return folder


@pytest.fixture(scope="session")
def bare() -> Iterator[Callable[[str], str]]:
    """Run code in a process of its own that has imported the package and nothing else; return what it printed."""
    command = [sys.executable, "-m", "tests.bare"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def run(code: str) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(code) + "\n")
            process.stdin.flush()
            status, printed = json.loads(process.stdout.readline())
            assert status == 0, printed
            return str(printed).strip()

        yield run


@pytest.fixture(scope="session")
def compiled(bare: Callable[[str], str]) -> dict[str, Any]:
    """What came of compiling: all cases in one process, for it is the start that takes long."""
    found: dict[str, Any] = json.loads(bare("from tests.compile_check import main; main()").splitlines()[-1])
    return found
