"""Numbers that come a step late are those of their step, and nothing bad is saved meanwhile."""

from pathlib import Path

import pytest
import torch

from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.late import Later, Readout
from ssl_blocks.engine.watch import Verdict, Watch


def test_numbers_of_any_kind_keep_their_order_and_their_value() -> None:
    weight = torch.tensor(0.1, requires_grad=True)
    counted = torch.tensor(3)
    readout = Readout({"w": weight, "lr": 0.25, "n": counted, "b": torch.tensor([2.0]).bfloat16()})
    counted.add_(1)  # what comes later does not count
    assert readout.is_there
    assert list(readout.read().items()) == [("w", float(weight.detach())), ("lr", 0.25), ("n", 3.0), ("b", 2.0)]


def test_what_is_there_is_used_at_once() -> None:
    found = []
    Later().use({"a": 1.0}, found.append)
    assert found == [{"a": 1.0}]


@pytest.mark.usefixtures("numbers_come_late")
def test_what_is_not_there_is_used_later_in_order_and_once() -> None:
    later, found = Later(), []
    value = torch.tensor(1.0)
    later.use({"a": value}, found.append)
    value.add_(1)
    later.use({"a": value}, found.append)
    assert found == []
    later.catch_up()
    later.catch_up()
    assert found == [{"a": 1.0}, {"a": 2.0}]


@pytest.mark.usefixtures("numbers_come_late")
def test_a_use_that_fails_is_not_tried_again() -> None:
    later, found = Later(), []
    later.use({"a": 1.0}, lambda numbers: numbers["b"])
    later.use({"a": 2.0}, found.append)
    with pytest.raises(KeyError):
        later.catch_up()
    later.catch_up()
    assert found == [{"a": 2.0}]


def verdict(loss: torch.Tensor, *sizes: float) -> Verdict:
    return Verdict(torch.stack([loss, *map(torch.tensor, sizes)]), ["first", "second"][: len(sizes)])


def test_on_a_cpu_a_bad_loss_is_told_in_its_step(tmp_path: Path) -> None:
    watch = Watch(tmp_path, "Rest")
    watch.see(verdict(torch.tensor(1.0)), 7)
    with pytest.raises(RunStopped, match=r"not a finite number in step 8 .*there is no checkpoint yet. Rest"):
        watch.see(verdict(torch.tensor(float("nan"))), 8)


@pytest.mark.usefixtures("numbers_come_late")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("first", "told"), [(1000, 1010), (1003, 1010), (1009, 1010), (1010, 1020), (1014, 1020)])
def test_on_a_gpu_the_first_bad_step_is_named_some_steps_later(bad: float, first: int, told: int) -> None:
    watch = Watch(None, "", every=10)
    for step in range(1000, told):
        watch.see(verdict(torch.tensor(1.0 if step < first else bad)), step)
    with pytest.raises(RunStopped, match=f"not a finite number in step {first} "):
        watch.see(verdict(torch.tensor(1.0)), told)


@pytest.mark.usefixtures("numbers_come_late")
@pytest.mark.parametrize("first", [3, 9])  # not looked at yet; on its way
def test_whoever_saves_is_told_of_a_bad_loss_before(first: int) -> None:
    watch = Watch(None, "", every=10)
    watch.check()
    for step in range(10):
        watch.see(verdict(torch.tensor(1.0 if step < first else float("nan"))), step)
    with pytest.raises(RunStopped, match=f"not a finite number in step {first} "):
        watch.check()


@pytest.mark.usefixtures("numbers_come_late")
def test_the_first_bad_gradient_of_the_first_bad_step_is_named_where_their_number_changes() -> None:
    watch, one = Watch(None, "", every=10), torch.tensor(1.0)
    for step in range(3):
        watch.see(verdict(one, 1.0), step)
    for step in range(3, 6):
        watch.see(verdict(one, 1.0, 2.0 if step == 3 else torch.inf), step)
    with pytest.raises(
        RunStopped, match="the gradient of second was not a finite number, though the loss was, in step 4 "
    ):
        watch.check()
    watch.see(verdict(one, torch.nan, torch.nan), 7)
    with pytest.raises(RunStopped, match="the gradient of first and 1 other parameters was not"):
        watch.check()
