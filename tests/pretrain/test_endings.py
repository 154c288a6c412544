"""Whatever ends a command early is a line and an exit code, in every part of a run, and costs nothing that was done."""

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors import SafetensorError

from ssl_blocks.cli import main
from ssl_blocks.engine import RunStopped
from ssl_blocks.engine.errors import from_outside
from ssl_blocks.evaluate import main as evaluate
from ssl_blocks.pretrain.complete import missing_parts
from ssl_blocks.recipes.randsac import RECIPE
from tests.pretrain.small import acting, arguments, prepare

pytestmark = pytest.mark.process  # takes long
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with one epoch."""
    return prepare(tmp_path_factory.mktemp("whole"), "--trainer.epochs=1").fit()


@pytest.fixture
def trained(whole: Path, tmp_path: Path) -> Path:
    """A run that was killed after training."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(folder / "encoder")
    (folder / "results.json").unlink()
    return folder


def resume(folder: Path, *, score: bool = False) -> int:
    return main(RECIPE, arguments(folder.parent, "--trainer.epochs=1", f"--trainer.score={score}", "--resume"))


def signalled(number: int):
    def act(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    return act


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def no_memory(*_: object, **__: object) -> None:
    raise MemoryError


def half_written(*_: object, **__: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


STAGES = {
    "loading": "ssl_blocks.data.load",
    "scoring": "ssl_blocks.pretrain.scoring.score_features",
    "measuring": "ssl_blocks.pretrain.run.measure_objective",
    "exporting": "ssl_blocks.encoders.timm.TimmViT.save",
    "writing results": "ssl_blocks.pretrain.run.write_results",
    "writing the card": "ssl_blocks.pretrain.run.write_card",
}
STOPPED = (signalled(15), "stopped by SIGTERM", 143)
CASES = [(stage, *STOPPED) for stage in ("loading", "exporting", "writing the card")]
CASES += [
    ("scoring", signalled(2), "stopped by SIGINT", 130),
    ("measuring", no_memory, "memory did not suffice", 1),
    ("exporting", half_written, "No space left", 1),
    ("writing results", full, "No space left", 1),
]


def test_an_end_outside_training_is_a_line_and_a_code_and_the_run_goes_on(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for stage, action, said, code in CASES:
        (trained / "results.json").unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(STAGES[stage], action)
            assert resume(trained, score=stage == "scoring") == code, (stage, said)
        told = capsys.readouterr().err
        assert said in told, stage
        assert told.count("\n") == 1
        if stage != "loading":
            assert "the last good checkpoint is" in told
        assert not [path for path in trained.rglob("*") if ".tmp" in path.name or "incomplete" in path.name], stage
        assert not (trained / "run.lock").exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert resume(trained) == 0
    assert missing_parts(trained, figures=False) == []
    assert "stopped" not in capsys.readouterr().err


def test_a_signal_before_a_run_begins_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_blocks.data.load", signalled(15))
        assert main(RECIPE, arguments(tmp_path / "runs")) == 143
    assert capsys.readouterr().err == "error: stopped by SIGTERM; nothing was written\n"
    assert not (tmp_path / "runs").exists()


def test_a_signal_amid_an_evaluation_adds_nothing(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "results.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_blocks.evaluation.protocols.knn.knn_accuracy", signalled(15), raising=False)
        patch.setattr("ssl_blocks.evaluation.extract.Extractor.of_parts", signalled(15))
        assert evaluate(["knn", str(whole), "--device=cpu"]) == 143
    assert "error: stopped by SIGTERM; no results were added" in capsys.readouterr().err
    assert (whole / "results.json").read_bytes() == before


def test_a_killed_loader_ends_the_run_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(40):
        Image.new("L", (8, 8), 3 * i).save(tmp_path / "photos" / f"{i:02d}.png")
    photos = (f"--data.name=imagefolder:{tmp_path / 'photos'}", "--data.channels=1", "--optimizer.batch_size=4")
    more = (
        "--data.storage=stream",
        "--data.image_size=8",
        "--data.workers=1",
        "--trainer.epochs=2",
        "--trainer.checkpoint_every=0.1",
    )

    def kill(_: object) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(
        RunStopped, match=r"a process that loads images was lost .*workers=0 .*last good checkpoint is .*ckpt"
    ):
        prepare(tmp_path, *photos, *more, build=acting(kill, 3)).fit()


def test_what_surroundings_do_is_told_and_mistakes_are_not() -> None:
    told = {
        "DataLoader worker (pid 7) is killed by signal: Killed. ": "a process that loads images was lost",
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory": "memory did not suffice",
        "CUDA out of memory. Tried to allocate 2 GiB": "memory did not suffice",
        "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3": "another process of the run was",
        "mat1 and mat2 shapes cannot be multiplied": None,
    }
    for text, said in told.items():
        found = from_outside(RuntimeError(text))
        assert found is None if said is None else str(found).startswith(said)
    assert from_outside(ValueError("out of memory")) is None


def test_where_nobody_reads_a_run_goes_on_and_plain_letters_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(tmp_path, "--trainer.epochs=1", "--name=rün")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="ascii") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert main(RECIPE, options) == 0
    assert missing_parts(tmp_path / "rün", figures=False) == []
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(RECIPE, [*options, "--resume"]) == 0
    assert b"r\\xfcn is complete" in shown.buffer.getvalue()
    assert capsys.readouterr().err == ""
    (tmp_path / "rün" / "results.json").unlink()
    with open("/dev/full", "w") as nowhere:
        monkeypatch.setattr(sys, "stdout", nowhere)
        assert main(RECIPE, [*options, "--resume"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "standard output could not be written (No space left on device)" in told
    assert missing_parts(tmp_path / "rün", figures=False) == []


def test_a_process_ends_as_its_command_where_nobody_reads_and_where_nothing_can_be_written() -> None:
    command = [sys.executable, "-m", "ssl_blocks", "randsac", "--help"]
    options = {"stderr": subprocess.PIPE, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        process.stdout.close()  # | true
        assert (process.stderr.read(), process.wait()) == ("", 0)
    with open("/dev/full", "w") as nowhere:
        done = subprocess.run(command, stdout=nowhere, check=False, **options)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "standard output could not be written (No space left on device)" in done.stderr
