"""The loop on a task of its own: places in a run decide draws, counts decide what parts weigh."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_blocks.engine import CountedLoss, Machine, Moment, Plan, Portion, Task
from ssl_blocks.engine.batches import load_parts
from ssl_blocks.engine.fit import train
from ssl_blocks.engine.loop import Loop
from ssl_blocks.engine.parallel import Processes

PLAN = Plan(steps_per_epoch=3, epochs=4, lr=0.1, seed=0, batch_size=4)
NUM = 14


def portion(first_step: int = 0, rank: int = 0, world_size: int = 1) -> Portion:
    return Portion(first_step, rank, world_size, world_size, torch.device("cpu"))


def places(plan: Plan = PLAN, **more: int) -> list[tuple[list[int], int, int]]:
    loader = load_parts(lambda i, s, p: (i.tolist(), s, p), plan, portion(**more), num_images=NUM, key=(7,))
    return list(loader)


def test_every_epoch_has_an_order_of_its_own() -> None:
    found = [index for index, _, _ in places()]
    epochs = [[place for index in found[3 * e : 3 * e + 3] for place in index] for e in range(4)]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({tuple(sorted(epoch)) for epoch in epochs}) > 1  # other images are left out
    assert found == [index for index, _, _ in places()]


def test_two_processes_take_the_parts_that_one_accumulates() -> None:
    one = places(Plan(**{**vars(PLAN), "accumulate": 2}))
    two = [places(rank=rank, world_size=2) for rank in range(2)]
    assert one[0::2] == two[0]
    assert one[1::2] == two[1]
    assert [(step, part) for _, step, part in one] == [(step, part) for step in range(12) for part in range(2)]
    assert places(first_step=5) == places()[5:]
    with pytest.raises(ValueError, match="batch_size=4 must be a multiple of world_size x accumulate = 3 x 1"):
        places(world_size=3)


class Weighed(Task):
    """Fits a number per image, and counts some images more than others."""

    def __init__(self, accumulate: int = 1, *, counts: Tensor | None = None, workers: int = 0) -> None:
        self.plan = Plan(steps_per_epoch=2, epochs=3, lr=0.1, seed=0, batch_size=4, accumulate=accumulate)
        self.model = nn.Linear(1, 1)
        nn.init.ones_(self.model.weight)
        nn.init.zeros_(self.model.bias)
        self.workers, self.moments, self.grads = workers, [], []
        self.counts = torch.arange(1.0, 9.0) if counts is None else counts

    def batches(self, portion: Portion):
        return load_parts(self._make, self.plan, portion, num_images=8, key=(0,), workers=self.workers)

    def _make(self, index: Tensor, step: int, part: int):
        if self.workers and step == 2:
            raise ValueError("image 3 cannot be read")
        return index.float()[:, None], self.counts[index]

    def loss(self, batch, moment: Moment) -> CountedLoss:
        x, counts = batch
        self.moments.append((moment.step, moment.part, moment.generator.initial_seed(), float(torch.rand(()))))
        errors = (self.model(x)[:, 0] - 3).square()
        total = counts.sum()
        return CountedLoss((errors * counts).sum() / torch.where(total > 0, total, 1.0), total)

    def after_step(self) -> None:
        self.grads.append(self.model.weight.grad.clone())


@pytest.mark.parametrize("unit", [1.0, 0.01])  # tokens, or weights that add up to less than 1
def test_parts_weigh_what_they_count(unit: float) -> None:
    counted = torch.arange(1.0, 9.0) * unit
    whole, parts = Weighed(counts=counted), Weighed(accumulate=2, counts=counted)
    losses = [train(task, Machine()) for task in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(parts.grads, whole.grads, rtol=1e-5, atol=1e-6)
    x, counts = next(iter(whole.batches(portion())))
    first = Weighed()
    ((first.model(x)[:, 0] - 3).square() * counts).sum().div(counts.sum()).backward()
    torch.testing.assert_close(whole.grads[0], first.model.weight.grad)
    assert len(losses[0]) == 3
    # where nothing counts, nothing is learnt
    nothing = Weighed(counts=torch.zeros(8))
    assert train(nothing, Machine()) == (0.0, 0.0, 0.0)
    assert not any(grad.any() for grad in nothing.grads)


def test_a_model_without_blocks_is_not_dealt_out() -> None:
    with pytest.raises(ValueError, match=r"strategy='fsdp' needs alike blocks to deal out, but \w+ has no two"):
        Loop(Weighed(), Machine(strategy="fsdp", processes=Processes(2)))


def test_every_process_step_and_part_draws_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rank in range(2):
        monkeypatch.setattr(Loop, "global_rank", rank)
        task = Weighed(accumulate=2)
        loop = Loop(task, Machine(processes=Processes(2)))
        with torch.random.fork_rng(devices=[]):
            for number, batch in enumerate(list(task.batches(portion()))[:2]):
                loop.training_step(batch, number)
        found += task.moments
    assert [(step, part) for step, part, _, _ in found] == [(0, 0), (0, 2), (0, 1), (0, 3)]
    assert len({seed for _, _, seed, _ in found}) == len({draw for *_, draw in found}) == 4
    monkeypatch.undo()
    task = Weighed()
    train(task, Machine())
    assert len({seed for _, _, seed, _ in task.moments}) == len({draw for *_, draw in task.moments}) == 6


def test_an_error_of_a_loading_process_arrives_as_it_is() -> None:
    with pytest.raises(ValueError, match=r"^image 3 cannot be read$"):
        train(Weighed(workers=1), Machine())


def test_without_a_folder_nothing_is_written_and_nothing_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task, before = Weighed(), torch.get_rng_state()
    train(task, Machine())
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(before, torch.get_rng_state())
    assert len({draw for *_, draw in task.moments}) == 6  # though it drew
    with pytest.raises(ValueError, match="resume=True needs the folder of the run"):
        train(Weighed(), Machine(), resume=True)
    train(Weighed(), Machine(), folder=tmp_path)
    with pytest.raises(FileExistsError, match="holds checkpoints already: give another, or resume=True"):
        train(Weighed(), Machine(), folder=tmp_path)
