"""A gradient or weight that is no number stops a run before it is saved, and its step can be done again."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_blocks.engine import CountedLoss, Machine, Moment, Plan, Portion, RunStopped, Task, fit
from ssl_blocks.engine.batches import load_parts
from ssl_blocks.engine.checkpoints import (
    check_checkpoint,
    last_good,
    list_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from ssl_blocks.engine.fit import Record, fit as train_on
from ssl_blocks.engine.gradients import finish_gradients
from ssl_blocks.engine.loop import Loop
from ssl_blocks.engine.replay import read_dump, replay_step
from ssl_blocks.testing import assert_no_wait
from tests.engine.tape import FusedLoop, TapeLoop

BAD = 7  # step


class Spoilt(torch.autograd.Function):
    """Returns what it is given; its gradient is no number where ``bad`` is."""

    @staticmethod
    def forward(context: Any, x: Tensor, bad: Tensor) -> Tensor:
        context.save_for_backward(bad)
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient + context.saved_tensors[0], None


class Hidden(nn.Module):
    """Where the gradient goes wrong."""

    bad: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bad", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return Spoilt.apply(x, self.bad)


class Bending(Task):
    """Fits a line by two layers; in one step a gradient between them is no number, and the loss is."""

    def __init__(self, value: float = float("nan"), **plan: Any) -> None:
        sizes = {"steps_per_epoch": 3, "epochs": 4, "lr": 0.1, "seed": 0, "batch_size": 4}
        self.plan, self.value = Plan(**{**sizes, **plan}), value
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(1, 4), Hidden(), nn.Linear(4, 1))
        self.model.register_buffer("table", torch.tensor([0.0, -torch.inf]))  # was never finite, and may stay so
        self.before: dict[int, dict[str, Tensor]] = {}

    def batches(self, portion: Portion):
        num = self.plan.steps_per_epoch * 4 + 2
        return load_parts(lambda index, *_: index.float()[:, None] / num, self.plan, portion, num_images=num, key=(0,))

    def before_step(self, progress) -> None:
        self.before[progress.step] = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model[1].bad.fill_(self.value if progress.step == BAD else 0.0)

    def loss(self, x: Tensor, moment: Moment) -> CountedLoss:
        return CountedLoss((self.model(x) - 3 * x).square().mean(), torch.full((), float(len(x))))

    def baked(self) -> tuple[()]:
        return ()


def stopped(loop: Loop, folder: Path) -> str:
    with pytest.raises(RunStopped) as end:
        train_on(loop, record=Record(folder))
    return str(end.value)


@pytest.mark.parametrize(
    ("value", "plan"),
    [(torch.nan, {}), (torch.inf, {"accumulate": 2}), (torch.nan, {"clip_grad": 0.1, "weight_decay_end": 0.5})],
)
def test_a_bad_gradient_under_a_finite_loss_is_named_and_reaches_no_checkpoint(value, plan, tmp_path: Path) -> None:
    task = Bending(value, **plan)
    with pytest.raises(RunStopped) as end:
        fit.train(task, Machine(), folder=tmp_path)
    assert re.search(
        rf"the gradient of 0.weight and 1 other parameters was not a finite number, though the loss was, in step {BAD} "
        r".*the last good checkpoint is .*step-00000006.ckpt. Its batch and weights are in .*bad-step-00000007.ckpt",
        str(end.value),
    )
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000006.ckpt", "step-00000003.ckpt"]
    kept = read_dump(tmp_path / "bad-step-00000007.ckpt")
    assert all(torch.equal(kept["state_dict"][f"model.{name}"], x) for name, x in task.before[BAD].items())


@pytest.mark.usefixtures("numbers_come_late")
@pytest.mark.parametrize(
    ("kind", "plan"), [(FusedLoop, {"weight_decay_end": 0.5, "weight_decay": 0.2}), (TapeLoop, {})]
)
def test_on_a_gpu_weights_stay_as_they_were_until_somebody_looks(kind, plan, tmp_path: Path) -> None:
    task = Bending(steps_per_epoch=12, epochs=1, **plan)
    loop = kind(task, Machine(graph="on" if kind is TapeLoop else "off"), folder=tmp_path)
    loop.watch.every = 25
    told = stopped(loop, tmp_path)
    assert "the gradient of 0.weight and 1 other parameters was not a finite number" in told
    assert f"in step {BAD} (counted from 0)" in told
    assert "there is no checkpoint yet" in told
    assert len(task.before) == 12  # found when the last step was to be saved
    if kind is TapeLoop:
        assert loop.replays > BAD
    kept = read_dump(tmp_path / "bad-step-00000007.ckpt")
    assert kept["ssl_blocks"]["weights_of"] == BAD
    assert all(torch.equal(kept["state_dict"][f"model.{name}"], x) for name, x in task.before[BAD].items())
    assert not torch.equal(task.before[BAD]["0.weight"], task.before[BAD - 1]["0.weight"])


def test_finishing_gradients_and_watching_them_waits_for_nothing() -> None:
    model = nn.Linear(2, 2)

    def step(model: nn.Module, x: Tensor, seen: Tensor) -> None:
        model(x).sum().backward()
        weights = list(model.parameters())
        finish_gradients(weights, torch.stack([x.sum(), x.sum()]), sum_of=None, clip=1.0, halted=seen)

    assert_no_wait(step, model, torch.ones(3, 2), torch.zeros(()))


@pytest.mark.parametrize("name", ["0.weight", "table"])
def test_weights_that_went_bad_behind_the_optimizer_are_not_saved(name: str, tmp_path: Path) -> None:
    task = Bending(0.0)

    def after_step() -> None:
        if len(task.before) == 6:
            task.model.state_dict()[name][0] = torch.nan

    task.after_step = after_step
    if name == "table":  # was open from the beginning, and is left alone
        fit.train(task, Machine(), folder=tmp_path)
        assert last_good(tmp_path).endswith("step-00000012.ckpt")
        return
    with pytest.raises(
        RunStopped, match=r"model.0.weight is not finite after step 5 .*good checkpoint is .*00003.ckpt"
    ):
        fit.train(task, Machine(), folder=tmp_path)
    assert len(list_checkpoints(tmp_path)) == 1


def test_the_last_good_checkpoint_is_one_that_can_be_read_and_is_finite(tmp_path: Path) -> None:
    fit.train(Bending(0.0), Machine(), folder=tmp_path)
    newest, older = list_checkpoints(tmp_path)
    assert last_good(tmp_path) == f"the last good checkpoint is {newest}"
    content = read_checkpoint(newest)
    whole = newest.read_bytes()
    content["state_dict"]["model.0.weight"][0] = torch.nan
    newest.unlink()
    write_checkpoint(content, newest)
    with pytest.raises(ValueError, match=f"model.0.weight is not finite .*previous good one is {older}"):
        check_checkpoint(newest)
    newest.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    assert last_good(tmp_path) == f"the last good checkpoint is {older}, for {newest.name} is damaged"
    older.write_bytes(b"")
    assert last_good(tmp_path) == "none of the 2 checkpoints is good"


def test_a_kept_step_done_again_tells_where_it_went_wrong(tmp_path: Path) -> None:
    with pytest.raises(RunStopped):
        fit.train(Bending(accumulate=2), Machine(), folder=tmp_path)
    dump = read_dump(tmp_path / "bad-step-00000007.ckpt")
    said = "\n".join(replay_step(Bending(accumulate=2), dump))
    assert "step 7 (counted from 0) on cpu" in said
    assert said.count("loss of part") == 2
    assert "forward: what modules return is finite\n" in said
    assert "the gradient of what 0 (Linear) returned is the first that is not finite" in said
    assert "parameters whose gradient is not finite: 2 of 4, 0.weight first" in said
    assert "all is finite this time" in "\n".join(replay_step(Bending(0.0, accumulate=2), dump))
    spoilt = Bending(0.0)
    spoilt.model[1].register_forward_hook(lambda module, given, returned: returned * torch.inf)
    assert "forward: 1 (Hidden) is the first to return what is not finite, of finite numbers" in "\n".join(
        replay_step(spoilt, dump)
    )
    dump["state_dict"]["model.2.bias"][0] = torch.nan
    assert "weights that are not finite before the step: 1 of 4, model.2.bias first" in "\n".join(
        replay_step(Bending(0.0), dump)
    )
    other = Bending()
    other.model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="the step is of another model"):
        replay_step(other, dump)
    with pytest.raises(ValueError, match="must be a step that a run kept"):
        read_dump(list_checkpoints(tmp_path)[0])


def test_a_step_that_cannot_be_kept_stops_the_run_all_the_same(tmp_path: Path, monkeypatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssl_blocks.engine.replay.write_checkpoint", full)
    with pytest.raises(RunStopped, match=r"in step 7 .*could not be kept \(OSError: .*No space left"):
        fit.train(Bending(), Machine(), folder=tmp_path)
    assert not list(tmp_path.glob("*bad-step*"))
