"""What is written beside training is what was to be saved, is there in time, and fails in the open."""

import csv
import os
import signal
import threading
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_blocks.engine import CountedLoss, Machine, Moment, Plan, Portion, RunStopped, Task, fit, saving
from ssl_blocks.engine.batches import load_parts
from ssl_blocks.engine.checkpoints import list_checkpoints, read_checkpoint
from ssl_blocks.engine.late import Snapshot
from ssl_blocks.engine.saving import AtomicCheckpointIO

STEPS = 12
LAST = f"step-{STEPS:08d}.ckpt"


class Line(Task):
    """Fits a line, calls ``action`` after some step, and spoils the loss of another."""

    def __init__(self, action=lambda: None, *, act_after: int = 0, bad_step: int = -1) -> None:
        self.plan = Plan(steps_per_epoch=3, epochs=4, lr=0.1, seed=0, batch_size=4)
        self.model = nn.Linear(1, 1)
        nn.init.ones_(self.model.weight)
        nn.init.zeros_(self.model.bias)
        self.action, self.act_after, self.bad_step, self.steps = action, act_after, bad_step, 0

    def batches(self, portion: Portion):
        return load_parts(lambda index, *_: index.float()[:, None], self.plan, portion, num_images=14, key=(0,))

    def loss(self, x: Tensor, moment: Moment) -> CountedLoss:
        loss = (self.model(x) - 3 * x).square().mean() + (torch.nan if moment.step == self.bad_step else 0)
        return CountedLoss(loss, torch.tensor(len(x)), {"bias": self.model.bias.detach()[0]})

    def after_step(self) -> None:
        self.steps += 1
        if self.steps == self.act_after:
            self.action()


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write checkpoints beside training, as where it is a GPU that trains."""
    monkeypatch.setattr(fit, "AtomicCheckpointIO", lambda keep, **_: AtomicCheckpointIO(keep, beside=True))


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write so slowly that steps are done meanwhile."""
    save = torch.save

    def slow(*arguments) -> None:
        time.sleep(0.1)
        save(*arguments)

    monkeypatch.setattr(torch, "save", slow)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def plain(content):
    """Content without clock times, tensors as lists of their bytes."""
    if isinstance(content, dict):
        return [(name, plain(value)) for name, value in content.items() if name != "seconds"]
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, Tensor):
        return content.dtype, content.shape, content.reshape(-1).view(torch.uint8).tolist()
    return content


@pytest.mark.usefixtures("beside", "slowly", "numbers_come_late")
def test_a_run_on_a_gpu_leaves_what_one_on_a_cpu_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = fit.train(Line(), Machine(), folder=tmp_path / "late")
    without_folder = fit.train(Line(), Machine())
    monkeypatch.undo()
    assert losses == without_folder == fit.train(Line(), Machine(), folder=tmp_path / "plain")
    late, at_once = tmp_path / "late", tmp_path / "plain"
    assert names(late) == names(at_once) == ["step-00000009.ckpt", LAST]
    assert (late / "metrics.csv").read_bytes() == (at_once / "metrics.csv").read_bytes()
    assert [row["step"] for row in rows(late)] == ["2", "5", "8", "11"]
    for name in names(late):
        one, other = (read_checkpoint(folder / "checkpoints" / name) for folder in (late, at_once))
        assert plain(one) == plain(other)


@pytest.mark.usefixtures("beside", "numbers_come_late")
def test_a_checkpoint_finds_the_rows_before_it_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, found = torch.save, []

    def looking(content, file) -> None:
        found.append((content["ssl_blocks"]["step"] - 1, int(rows(tmp_path)[-1]["step"])))
        save(content, file)

    monkeypatch.setattr(torch, "save", looking)
    fit.train(Line(), Machine(), folder=tmp_path)
    assert found == [(step, step) for step in (2, 5, 8, 11)]


def test_what_is_changed_after_saving_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, save, path = threading.Event(), torch.save, tmp_path / "checkpoints" / "step-00000001.ckpt"
    monkeypatch.setattr(torch, "save", lambda *arguments: (changed.wait(10), save(*arguments)))
    files, weight, losses = AtomicCheckpointIO(2, beside=True), torch.ones(3), [1.0]
    files.save_checkpoint({"ssl_blocks": {"format_version": 2, "losses": losses}, "weight": weight}, path)
    weight.zero_()
    losses.append(2.0)
    assert not path.exists()
    changed.set()
    files.join()
    content = read_checkpoint(path)
    assert content["weight"].tolist() == [1, 1, 1]
    assert content["ssl_blocks"]["losses"] == [1.0]


def test_old_ones_stay_until_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, save, files = threading.Event(), torch.save, AtomicCheckpointIO(1, beside=True)
    paths = [tmp_path / "checkpoints" / f"step-0000000{step}.ckpt" for step in (1, 2)]
    files.save_checkpoint({}, paths[0])
    files.join()
    monkeypatch.setattr(torch, "save", lambda *arguments: (go_on.wait(10), save(*arguments)))
    files.save_checkpoint({}, paths[1])
    assert list_checkpoints(tmp_path) == [paths[0]]
    go_on.set()
    files.join()
    assert names(tmp_path) == [paths[1].name]


def failing(*_) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize(("after", "steps"), [(1, 4), (11, STEPS)])  # amid the run, and with its last checkpoint
def test_an_error_in_writing_ends_the_run(
    after: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Line(lambda: monkeypatch.setattr(torch, "save", failing), act_after=after)
    monkeypatch.setattr(saving.Future, "done", lambda self: bool(self.exception()) or True)  # waits: no race here
    with pytest.raises(RunStopped, match=r"could not be written or read: .*No space left .*checkpoint"):
        fit.train(task, Machine(), folder=tmp_path)
    assert task.steps == steps
    assert not any(name.endswith(".tmp") for name in names(tmp_path))


@pytest.mark.usefixtures("beside", "slowly", "numbers_come_late")
def test_a_signal_is_answered_when_the_checkpoint_is_on_disk(tmp_path: Path) -> None:
    task = Line(lambda: os.kill(os.getpid(), signal.SIGTERM), act_after=5)
    with pytest.raises(RunStopped, match=r"stopped by SIGTERM after step 5, saved as .*step-00000005.ckpt"):
        fit.train(task, Machine(), folder=tmp_path)
    assert names(tmp_path) == ["step-00000003.ckpt", "step-00000005.ckpt"]
    assert [row["step"] for row in rows(tmp_path)] == ["2"]


@pytest.mark.usefixtures("beside")
def test_what_could_not_be_saved_is_not_told_as_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def both() -> None:
        while not (tmp_path / "checkpoints" / "step-00000003.ckpt").is_file():  # the one before is on disk
            time.sleep(0.01)
        monkeypatch.setattr(torch, "save", failing)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunStopped, match=r"No space left .*last good checkpoint is .*step-00000003.ckpt"):
        fit.train(Line(both, act_after=5), Machine(), folder=tmp_path)


def test_an_error_is_raised_at_the_next_saving_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, path = AtomicCheckpointIO(2, beside=True), tmp_path / "checkpoints" / "step-00000001.ckpt"
    with monkeypatch.context() as broken:
        broken.setattr(torch, "save", failing)
        files.save_checkpoint({}, path)
        with pytest.raises(OSError, match="No space left"):
            files.save_checkpoint({}, path)
    files.save_checkpoint({}, path)
    files.join()
    assert path.is_file()


@pytest.mark.usefixtures("beside", "slowly")
def test_a_bad_loss_names_the_checkpoint_that_was_under_way(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"in step 3 .*last good checkpoint is .*step-00000003.ckpt"):
        fit.train(Line(bad_step=3), Machine(), folder=tmp_path)
    assert names(tmp_path) == ["step-00000003.ckpt"]


@pytest.mark.usefixtures("beside", "slowly")
def test_an_error_of_training_comes_before_one_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def both() -> None:
        monkeypatch.setattr(os, "replace", failing)
        raise ZeroDivisionError("in step 4")

    with pytest.raises(ZeroDivisionError, match="in step 4") as caught:
        fit.train(Line(both, act_after=4), Machine(), folder=tmp_path)
    assert any("No space left" in note for note in caught.value.__notes__)


def test_a_snapshot_keeps_kinds_ties_and_bits() -> None:
    weight = torch.tensor([1.0, float("nan"), -0.0]).bfloat16()
    state = OrderedDict(one=weight, same=weight.detach(), part=weight[1:], turned=torch.ones(2, 3).T)
    state._metadata = {"version": 2}
    given = {"state": state, "steps": [1, (2, "a")], "none": None}
    copied = Snapshot(given).content()
    assert plain(copied) == plain(given)
    found = copied["state"]
    assert type(found) is OrderedDict
    assert found._metadata == {"version": 2}
    assert found["one"] is found["same"]
    assert found["one"].data_ptr() != weight.data_ptr()
    assert found["turned"].stride() == (1, 3)
    assert copied["steps"] is not given["steps"]
