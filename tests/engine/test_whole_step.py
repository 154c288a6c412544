"""A step as one function, and weights in 16 bits with masters: the same training as the plain one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_blocks.engine import CountedLoss, Machine, Moment, Plan, Portion, Task
from ssl_blocks.engine.batches import load_parts
from ssl_blocks.engine.checkpoints import list_checkpoints, read_checkpoint
from ssl_blocks.engine.fit import fit, train
from ssl_blocks.engine.graph import WARM_UP, StepGraph
from ssl_blocks.engine.loop import Loop
from ssl_blocks.engine.masters import MasterAdamW, rounded_weights
from tests.engine.tape import FusedLoop, Tape, TapeLoop


class Drawing(Task):
    """Two layers with dropout, a target drawn anew in every step, and an average that follows by a schedule."""

    def __init__(self, **plan: Any) -> None:
        sizes = {"steps_per_epoch": 4, "epochs": 2, "lr": 0.05, "seed": 3, "batch_size": 4}
        self.plan = Plan(**{**sizes, **plan})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.LayerNorm(8), nn.Linear(8, 1))
        self.average = self.model[0].weight.detach().clone()
        self.momentum = 0.0

    def batches(self, portion: Portion):
        data = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
        return load_parts(lambda index, *_: data[index], self.plan, portion, num_images=16, key=(0,))

    def loss(self, batch: Tensor, moment: Moment) -> CountedLoss:
        wanted = torch.rand(len(batch), 1, generator=moment.generator)
        return CountedLoss((self.model(batch) - wanted).square().mean(), torch.full((), float(len(batch))))

    def before_step(self, progress) -> None:
        self.momentum = progress.step / progress.num_steps

    def after_step(self) -> None:
        self.average.lerp_(self.model[0].weight.detach().float(), 1 - self.momentum)

    def baked(self) -> tuple[float]:
        return (self.momentum,)


def trained(machine: Machine, **plan: Any) -> dict[str, Tensor]:
    task = Drawing(**plan)
    losses = train(task, machine)
    return {**task.model.state_dict(), "average": task.average, "losses": torch.tensor(losses)}


SCHEDULES = {"clip_grad": 0.05, "weight_decay": 0.1, "weight_decay_end": 0.5, "warmup_steps": 2}


@pytest.mark.parametrize(("plan", "dtype"), [({}, torch.bfloat16), (SCHEDULES, None)])
def test_a_whole_step_leaves_the_bits_of_the_plain_one(plan: dict[str, Any], dtype: torch.dtype | None) -> None:
    plain = trained(Machine(autocast_dtype=dtype), **plan)
    whole = trained(Machine(autocast_dtype=dtype, graph="on"), **plan)
    assert all(torch.equal(plain[name], whole[name]) for name in plain)
    assert not torch.equal(plain["average"], trained(Machine(autocast_dtype=dtype), seed=4, **plan)["average"])


@pytest.mark.parametrize("machine", [Machine(graph="on"), Machine(autocast_dtype=torch.bfloat16, pure=True)])
def test_a_run_goes_on_with_the_same_bits(machine: Machine, tmp_path) -> None:
    class StoppedError(Exception):
        pass

    class Stopping(Drawing):
        def before_step(self, progress) -> None:
            if progress.step == 4:
                raise StoppedError
            super().before_step(progress)

    whole = trained(machine, **SCHEDULES)
    first = Stopping(**SCHEDULES)
    with pytest.raises(StoppedError):
        train(first, machine, folder=tmp_path)
    second = Drawing(**SCHEDULES)
    second.average = first.average
    train(second, machine, folder=tmp_path, resume=True)
    assert all(torch.equal(whole[name], value) for name, value in second.model.state_dict().items())
    assert torch.equal(second.average, whole["average"])


def test_steps_of_parts_or_of_unknown_numbers_run_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    class Unknown(Drawing):
        def baked(self) -> None:  # type: ignore[override]
            return None

    for task, reason in (
        (Drawing(accumulate=2), "a step has 2 parts"),
        (Unknown(), "Unknown does not name what it bakes in"),
    ):
        plain, told = type(task)(**vars(task.plan)), []
        train(plain, Machine())
        fit(Loop(task, Machine(graph="on"), tell=told.append))
        assert told == [f"note: steps are not captured as a CUDA graph: {reason}"]
        assert all(map(torch.equal, plain.model.state_dict().values(), task.model.state_dict().values()))
    fit(Loop(Unknown(), Machine(graph="auto")))  # without a GPU nobody expects one
    assert capsys.readouterr().out == ""


def test_gradients_are_clipped_to_the_norm() -> None:
    norms = []

    class Watching(Drawing):
        def after_step(self) -> None:
            norms.append(torch.stack([p.grad.norm() for p in self.model.parameters()]).norm().item())

    train(Watching(), Machine())
    free, clipped = list(norms), SCHEDULES["clip_grad"]
    norms.clear()
    train(Watching(clip_grad=clipped), Machine())
    assert min(free) > clipped
    assert norms == pytest.approx([clipped] * 8, rel=1e-4)


@pytest.mark.parametrize("machine", [Machine(), Machine(autocast_dtype=torch.bfloat16, pure=True), Machine(graph="on")])
def test_weight_decay_follows_half_a_cosine_in_the_group_that_decays(machine: Machine) -> None:
    found = []

    class Decaying(Drawing):
        def loss(self, batch: Tensor, moment: Moment) -> CountedLoss:
            return CountedLoss(sum(p.sum() for p in self.model.parameters()) * 0.0, torch.ones(()))

        def after_step(self) -> None:
            found.append((self.model[0].weight[0, 0].item(), self.model[0].bias[0].item()))

    task = Decaying(weight_decay=0.04, weight_decay_end=0.4)
    weight, bias = (parameter.detach().flatten()[0].item() for parameter in (task.model[0].weight, task.model[0].bias))
    loop = Loop(task, machine)
    fit(loop)
    rates = [0.05 / 2 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    for step, (rate, (decayed, spared)) in enumerate(zip(rates, found, strict=True)):
        weight *= 1 - rate * (0.4 - 0.36 / 2 * (1 + math.cos(math.pi * step / 8)))
        assert decayed == pytest.approx(weight, rel=0.005 if machine.pure else 1e-5)
        assert spared == pytest.approx(bias, rel=0.005 if machine.pure else 1e-6)


def test_masters_keep_what_sixteen_bits_would_lose() -> None:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = MasterAdamW([{"params": list(layer.parameters())}], rounded_weights(layer), lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        layer(torch.ones(3, 2, dtype=torch.bfloat16)).sum().backward()
        optimizer.take_gradients()
        assert layer.weight.grad is None
        optimizer.step()
        assert torch.equal(layer.weight, optimizer.masters[0].bfloat16())
        optimizer.zero_grad()
        assert optimizer.masters[0].grad is None
    expected = torch.full((1, 2), 0.99)
    torch.testing.assert_close(optimizer.masters[0].detach(), expected)  # 1 - 1e-4 is 1 in bfloat16
    assert torch.equal(optimizer.whole(layer.state_dict())["weight"], optimizer.masters[0])
    optimizer.give_back()
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_a_run_goes_on_as_another_machine_computes(tmp_path) -> None:
    first = Drawing(epochs=2, **SCHEDULES)
    first.plan = Plan(**{**vars(first.plan), "epochs": 1})
    train(first, Machine(), folder=tmp_path)
    (path,) = list_checkpoints(tmp_path)
    second, told = Drawing(**SCHEDULES), []
    second.before_step = lambda progress: setattr(second, "momentum", 0.5)  # so that one graph will do
    loop = TapeLoop(second, Machine(graph="on"), folder=tmp_path, tell=told.append)
    loop.continue_from(read_checkpoint(path), path)
    seen = []
    second.after_step = lambda: seen.append([group["fused"] for group in loop.trainer.optimizers[0].param_groups])
    fit(loop, checkpoint=path)
    assert set(map(tuple, seen)) == {(True, True)}
    assert (loop.tapes, told) == (1, [])


def test_pure_weights_need_their_precision() -> None:
    with pytest.raises(ValueError, match=r"pure=True needs autocast_dtype=torch\.bfloat16, got None"):
        Machine(pure=True)


def test_pure_weights_are_of_16_bits_in_training_and_whole_before_and_after(tmp_path) -> None:
    seen = []

    class Watching(Drawing):
        def loss(self, batch: Tensor, moment: Moment) -> CountedLoss:
            seen.append([p.dtype for p in self.model.parameters()])
            return super().loss(batch, moment)

    task = Watching()
    train(task, Machine(autocast_dtype=torch.bfloat16, pure=True), folder=tmp_path)
    half, norm = [torch.bfloat16] * 2, [torch.float32] * 2
    assert seen == [[*half, *norm, *half]] * 8
    state = read_checkpoint(list_checkpoints(tmp_path)[0])["state_dict"]
    for name, value in task.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(state[f"model.{name}"], value)
    assert not torch.equal(task.model[0].weight, task.model[0].weight.bfloat16().float())
    mixed = trained(Machine(autocast_dtype=torch.bfloat16))
    torch.testing.assert_close(task.model[0].weight.detach(), mixed["0.weight"], rtol=1e-5, atol=1e-6)


def test_a_replayed_step_leaves_the_bits_of_the_plain_one() -> None:
    class Steady(Drawing):
        def before_step(self, progress) -> None:
            self.momentum = torch.tensor(0.5)

        def baked(self) -> tuple[()]:
            return ()

    for plan in ({}, SCHEDULES):
        plain, taped, told = Steady(**plan), Steady(**plan), []
        loops = [FusedLoop(plain), TapeLoop(taped, Machine(graph="on"), tell=told.append)]
        for loop in loops:
            fit(loop)
        assert (loops[1].tapes, loops[1].replays, told) == (1, 8 - WARM_UP, [])
        assert loops[0].losses == loops[1].losses
        numbers = Steady(**plan)  # rates and decay as plain numbers, not read from places in memory
        assert train(numbers, Machine()) == pytest.approx(loops[0].losses, rel=1e-4)
        torch.testing.assert_close(numbers.model.state_dict(), plain.model.state_dict(), rtol=1e-3, atol=1e-5)
        assert all(map(torch.equal, plain.model.state_dict().values(), taped.model.state_dict().values()))
        assert torch.equal(plain.average, taped.average)


def steps(graph: StepGraph, batches: list[Tensor]) -> list[float]:
    return [float(graph(batch)) for batch in batches]


def test_a_step_graph_records_each_kind_of_step_once_and_gives_up_where_kinds_are_many() -> None:
    number, told = [2.0], []

    def step(batch: Tensor) -> Tensor:
        return batch.sum() * number[0]

    tape = Tape()
    graph = StepGraph(step, tape, baked=lambda: (number[0],), tell=told.append)
    ones = [torch.full((3,), float(i)) for i in range(5)]
    assert steps(graph, ones) == [6.0 * i for i in range(5)]
    assert (tape.tapes, tape.replays) == (1, 2)
    number[0] = 3.0
    assert steps(graph, ones) == [9.0 * i for i in range(5)]
    assert steps(graph, [torch.ones(2)] * 4) == [6.0] * 4
    assert (tape.tapes, tape.replays, told) == (3, 5, [])
    number[0] = 2.0
    assert steps(graph, ones) == [6.0 * i for i in range(5)]  # that one is still there
    assert (tape.tapes, tape.replays) == (3, 10)
    number[0] = 4.0
    assert steps(graph, ones[:1]) == [0.0]
    assert steps(graph, [torch.ones(4)]) == [16.0]
    assert len(told) == 1
    assert told[0].startswith("note: steps are not captured as a CUDA graph")
    assert "batches or plain numbers of the step change: [[3]] and [[4]]" in told[0]
    number[0] = 5.0
    assert steps(graph, ones) == [15.0 * i for i in range(5)]
    assert (tape.tapes, tape.replays, len(told)) == (3, 10, 1)


def test_a_step_that_cannot_be_recorded_runs_as_it_is_and_says_why() -> None:
    told: list[str] = []
    graph = StepGraph(lambda batch: batch * float(batch.sum()), Tape(), tell=told.append)
    assert steps(graph, [torch.tensor([2.0])] * 6) == [4.0] * 6
    assert told == [
        "note: steps are not captured as a CUDA graph, and run one kernel after the other: "
        "a recorded step reads a number: _local_scalar_dense"
    ]
