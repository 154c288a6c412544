"""Parameter groups and schedule against their formulas."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.engine import OptimizerConfig, Plan, parameter_groups, warmup_cosine
from tests.recipes import build


def test_norms_biases_positions_and_tokens_do_not_decay() -> None:
    objective = build(
        sb.SquarePartitioner(sides=(2,)), class_token=True, positions="learned", decoder_positions="learned"
    )
    names = {id(p): n for n, p in objective.named_parameters()}
    decay, spare = parameter_groups(objective, weight_decay=0.1, no_weight_decay=objective.no_weight_decay())
    assert decay["weight_decay"] == 0.1
    assert spare["weight_decay"] == 0.0
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in (decay, spare))
    assert all(n.endswith("weight") for n in decayed)
    assert not any("norm" in n for n in decayed)
    assert {"encoder.module.cls_token", "encoder.module.pos_embed", "reader.decoder.positions.table"} <= spared
    assert len(decayed) + len(spared) == sum(p.requires_grad for p in objective.parameters())


def test_parameters_without_gradient_are_left_out() -> None:
    objective = build(sb.SquarePartitioner(sides=(2,)))  # fixed sine-cosine positions
    table = objective.encoder.module.pos_embed
    groups = parameter_groups(objective, weight_decay=0.1, no_weight_decay=set())
    assert not any(p is table for group in groups for p in group["params"])


def test_learning_rate_scales_with_the_batch() -> None:
    assert OptimizerConfig(base_lr=1e-3, batch_size=1024).lr == pytest.approx(4e-3)


def test_schedule_is_linear_then_half_a_cosine() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    schedule = warmup_cosine(optimizer, num_steps=100, warmup_steps=20, min_lr=0.5)
    for step in range(100):
        schedule.step_update(step)
        expected = (
            2.0 * step / 20 if step < 20 else 0.5 + (2.0 - 0.5) * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))
        )
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected), step


def test_first_step_has_rate_zero_before_any_update() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    warmup_cosine(optimizer, num_steps=10, warmup_steps=2, min_lr=0.0)
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_a_warmup_may_begin_at_a_share_of_the_peak() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    schedule = warmup_cosine(optimizer, num_steps=100, warmup_steps=20, min_lr=0.2, warmup_start=0.5)
    assert optimizer.param_groups[0]["lr"] == 1.0
    for step in range(100):
        schedule.step_update(step)
        falling = 0.2 + (2.0 - 0.2) * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0 + step / 20 if step < 20 else falling), step
    flat = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    warmup_cosine(flat, num_steps=10, warmup_steps=0, min_lr=0.0, warmup_start=0.5)
    assert flat.param_groups[0]["lr"] == 2.0


def test_warmup_as_long_as_the_run_is_refused() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    with pytest.raises(ValueError, match=r"warmup_steps=10 must be fewer than num_steps=10"):
        warmup_cosine(optimizer, num_steps=10, warmup_steps=10, min_lr=0.0)


def test_a_configured_warmup_that_leaves_nothing_is_a_tenth_of_the_run() -> None:
    config = OptimizerConfig(warmup_epochs=2.5)
    assert (config.warmup_steps(steps_per_epoch=5, epochs=3), config.warmup_remark(3)) == (12, None)
    assert config.warmup_steps(steps_per_epoch=20, epochs=2) == 4
    assert config.warmup_steps(steps_per_epoch=1, epochs=2) == 0
    assert config.warmup_remark(2) == (
        "optimizer.warmup_epochs=2.5 is not shorter than trainer.epochs=2: the warm-up takes a tenth of the run, "
        "0.2 epochs"
    )


def rates(schedule: str, **sizes: float) -> list[float]:
    """Of every step of a run of 2 steps an epoch, at a peak of 2."""
    plan = Plan(**{"steps_per_epoch": 2, "lr": 2.0, "seed": 0, "batch_size": 1, **sizes}, schedule=schedule)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=plan.lr)
    schedule_of, found = plan.schedule_of(optimizer), []
    for step in range(plan.num_steps):
        schedule_of.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_dinos_rates_are_those_of_its_code() -> None:
    """``np.linspace(0, base, n)``, then ``final + (base - final) (1 + cos(pi i / len)) / 2`` for i below len."""
    warmup = np.linspace(0.5, 2.0, 6)
    i = np.arange(20 - 6)
    expected = np.concatenate((warmup, 0.1 + 0.5 * (2.0 - 0.1) * (1 + np.cos(np.pi * i / len(i)))))
    found = rates("dino", epochs=10, warmup_steps=6, warmup_start=0.25, min_lr=0.1)
    assert found == pytest.approx(expected)
    assert found[5] == found[6] == 2.0
    assert rates("mae", epochs=10, warmup_steps=6)[5:7] == [pytest.approx(5 / 3), 2.0]
    assert rates("dino", epochs=10, warmup_steps=1)[:2] == [0.0, 2.0]  # np.linspace(0, 2, 1) is 0


def test_the_puzzles_rates_are_those_of_its_code() -> None:
    """By hand: each epoch multiplies by what the warm-up gains, and moves the distance to the end by the cosine."""
    rate, expected = 2.0 * 0.5, []
    for epoch in range(10):
        expected += [rate, rate]  # two steps
        if epoch < 4:
            rate *= (0.5 + 0.125 * (epoch + 1)) / (0.5 + 0.125 * epoch)
        rate = 0.2 + (rate - 0.2) * (1 + math.cos(math.pi * (epoch + 1) / 10)) / (1 + math.cos(math.pi * epoch / 10))
    assert rates("apl", epochs=10, warmup_steps=8, warmup_start=0.5, min_lr=0.2) == pytest.approx(expected)
    assert rates("apl", epochs=2, warmup_steps=1, warmup_start=0.5) == pytest.approx([2, 2, 1, 1])  # int(.05 * 2) is 0


def test_a_chained_warmup_cannot_begin_at_nothing() -> None:
    with pytest.raises(ValueError, match=r"optimizer.warmup_start=0 must be above 0 with optimizer.schedule=apl"):
        OptimizerConfig(schedule="apl")


@pytest.mark.parametrize("warmup", [0, 4])
def test_layers_learn_at_their_rates_from_the_first_step(warmup: int) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    layers = {name: int(name[0]) // 2 for name, _ in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=0.1, no_weight_decay={"2.weight"}, layers=layers, layer_decay=0.5)
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    names = {name: found[id(p)] for name, p in model.named_parameters()}
    spared = dict.fromkeys(("0.bias", "1.weight", "1.bias"), (0.5, 0.0)) | dict.fromkeys(
        ("2.weight", "2.bias"), (1.0, 0.0)
    )
    assert names == {"0.weight": (0.5, 0.1)} | spared
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    schedule = warmup_cosine(optimizer, num_steps=10, warmup_steps=warmup)
    for step in range(6):
        assert {g["lr"] / g["lr_scale"] for g in optimizer.param_groups} == {optimizer.param_groups[-1]["lr"]}
        assert (optimizer.param_groups[-1]["lr"] == 0) == (step == 0 and warmup > 0)
        schedule.step_update(step + 1)
