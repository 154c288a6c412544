"""MovingAverage follows a module slowly; EncoderTarget says what it sees."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import ssl_blocks as sb
from tests.recipes import images


def net():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    module.register_buffer("table", torch.zeros(2))
    return module


def move(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value += torch.randn(value.shape, generator=generator)


def test_weights_are_the_average_written_out():
    student = net()
    teacher = sb.MovingAverage(student, momentum=0.9)
    expected = [value.tolist() for value in (student[0].weight.flatten(), student[1].bias, student[3].bias)]
    for seed in range(3):
        move(student, seed)
        teacher.after_step()
        new = [value.tolist() for value in (student[0].weight.flatten(), student[1].bias, student[3].bias)]
        expected = [[0.9 * a + 0.1 * b for a, b in zip(*pair, strict=True)] for pair in zip(expected, new, strict=True)]
    found = [teacher.copy[0].weight.flatten(), teacher.copy[1].bias, teacher.copy[3].bias]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs))


@pytest.mark.parametrize(("momentum", "moves"), [(0.0, True), (1.0, False)])
def test_the_ends_of_the_range(momentum, moves):
    student = net()
    before, teacher = copy.deepcopy(student), sb.MovingAverage(student, momentum=momentum)
    move(student)
    teacher.after_step()
    assert torch.equal(teacher.copy[0].weight, (student if moves else before)[0].weight)


def test_buffers_follow_at_once_but_those_of_batch_norms():
    student = net()
    teacher = sb.MovingAverage(student, momentum=0.9)
    student.table += 3.0
    student[1].running_mean += 5.0
    teacher.after_step()
    assert torch.equal(teacher.copy.table, student.table)
    assert torch.equal(teacher.copy[1].running_mean, torch.zeros(4))


def test_it_is_in_evaluation_mode_but_its_batch_norms():
    teacher = sb.MovingAverage(net(), momentum=0.9)
    for mode in (True, False):
        teacher.train(mode)
        assert [part.training for part in teacher.copy] == [False, mode, False, False]
    nn.ModuleList([teacher]).train()  # as a part of something else
    assert teacher.copy[1].training
    assert not teacher.copy[2].training


def test_it_gets_no_gradient_and_gives_none_to_its_owner():
    student = net()
    student[0].weight.grad = torch.ones_like(student[0].weight)
    teacher = sb.MovingAverage(student, momentum=0.5)
    assert not any(value.requires_grad for value in teacher.parameters())
    assert all(value.requires_grad for value in student.parameters())
    teacher.after_step()
    assert torch.equal(student[0].weight.grad, torch.ones_like(student[0].weight))


def test_the_module_is_not_saved_with_it_and_a_copy_of_both_stays_together():
    student = net()
    teacher = sb.MovingAverage(student, momentum=0.0)
    assert set(teacher.state_dict()) == {f"copy.{name}" for name in student.state_dict()}
    both = copy.deepcopy(nn.ModuleDict({"student": student, "teacher": teacher}))
    move(both["student"])
    both["teacher"].after_step()
    assert torch.equal(both["teacher"].copy[0].weight, both["student"][0].weight)
    assert not torch.equal(teacher.copy[0].weight, both["teacher"].copy[0].weight)


def test_the_momentum_follows_its_schedule():
    student = net()
    teacher = sb.MovingAverage(student, momentum=lambda progress: progress.step / 10)
    with pytest.raises(RuntimeError, match="call before_step"):
        teacher.after_step()
    teacher.before_step(STEP)
    before = teacher.copy[0].weight.clone()
    move(student)
    teacher.after_step()
    torch.testing.assert_close(teacher.copy[0].weight, 0.3 * before + 0.7 * student[0].weight)


STEP = sb.Progress(step=3, epoch=0, num_steps=10, steps_per_epoch=5)


@pytest.mark.parametrize("momentum", [0.9, lambda _: 0.9], ids=["fixed", "scheduled"])
@pytest.mark.parametrize("average", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("followed", [torch.float32, torch.bfloat16])
def test_weights_of_any_two_types_are_averaged_in_single_precision_at_least(momentum, average, followed):
    student = net().to(followed)
    teacher = sb.MovingAverage(student, momentum=momentum)
    teacher.copy.to(average)
    before = teacher.copy[0].weight.clone()
    move(student)
    teacher.before_step(STEP)
    teacher.after_step()
    expected = 0.9 * before.double() + 0.1 * student[0].weight.double()
    assert teacher.copy[0].weight.dtype == average
    assert student[0].weight.dtype == followed
    torch.testing.assert_close(teacher.copy[0].weight, expected.to(average), rtol=1e-6, atol=1e-7)


def test_a_scheduled_rate_stays_where_a_graph_reads_it():
    teacher = sb.MovingAverage(net(), momentum=lambda progress: progress.step / 10)
    place = teacher.rate.data_ptr()
    teacher.before_step(STEP)
    assert teacher.rate.data_ptr() == place
    assert teacher.rate.item() == pytest.approx(0.7)
    assert teacher.to("meta").rate.is_meta


def test_what_has_no_weights_can_be_followed():
    sb.MovingAverage(nn.Identity(), momentum=0.9).after_step()


def test_the_momentum_of_every_step_is_that_of_dinos_code():
    """``1 + (m - 1) (1 + cos(pi i / n)) / 2`` for i below n: the last step is one short of 1."""
    momentum = sb.parts.cosine_momentum(0.9)
    found = [momentum(sb.Progress(step, step // 5, 20, 5)) for step in range(20)]
    assert found == pytest.approx(list(1 + 0.5 * (0.9 - 1) * (1 + np.cos(np.pi * np.arange(20) / 20))))
    assert 0.999 < found[-1] < 1


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_a_momentum_out_of_range_is_refused(momentum):
    for build in (lambda: sb.MovingAverage(net(), momentum=momentum), lambda: sb.parts.cosine_momentum(momentum)):
        with pytest.raises(ValueError, match=f"(momentum|start)={momentum} must be at least 0 and at most 1"):
            build()


# As a target


def vit(**options):
    torch.manual_seed(0)
    size = {"image_size": 8, "patch_size": 2, "depth": 3, "embed_dim": 16, "num_heads": 2}
    return sb.encoders.timm_vit(**(size | options))


@pytest.mark.parametrize("norm", ["final", "token", None])
@pytest.mark.parametrize("layers", [1, 3])
def test_an_encoder_target_is_the_mean_of_the_last_layers_written_out(norm, layers):
    encoder, batch = vit(class_token=True, reg_tokens=1), images(2, 8)
    move(encoder)
    index = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        hidden = encoder.encode(encoder.embed(batch), index).hidden
        total = 0
        for states in hidden[len(hidden) - layers :]:
            states = states[:, 2:]
            if norm == "final":
                states = encoder.norm(states)
            elif norm == "token":
                mean, variance = states.mean(-1, keepdim=True), states.var(-1, keepdim=True, unbiased=False)
                states = (states - mean) / (variance + 1e-5).sqrt()
            total = total + states
    target = sb.EncoderTarget(sb.MovingAverage(encoder, momentum=0.5), layers=layers, norm=norm)
    torch.testing.assert_close(target(batch), total / layers)
    torch.testing.assert_close(
        sb.EncoderTarget(copy.deepcopy(encoder), layers=layers, norm=norm)(batch), total / layers
    )


def test_an_encoder_target_follows_its_average_and_stays_in_evaluation_mode():
    encoder, batch = vit(proj_drop_rate=0.5), images(2, 8)
    target = sb.EncoderTarget(sb.MovingAverage(encoder, momentum=0.5)).train()
    before = target(batch)
    assert torch.equal(target(batch), before)
    move(encoder)
    assert torch.equal(target(batch), before)
    target.encoder.after_step()
    assert not torch.allclose(target(batch), before)


def test_a_frozen_encoder_is_frozen_and_a_student_stays_trained():
    frozen, student = vit(), vit()
    sb.EncoderTarget(frozen)
    sb.EncoderTarget(sb.MovingAverage(student, momentum=0.5))
    assert not any(value.requires_grad for value in frozen.parameters())
    assert all(value.requires_grad for name, value in student.named_parameters() if "norm" in name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"layers": 4}, "layers=4 must be at least 1 and at most the encoder's 3 blocks"),
    ],
)
def test_an_encoder_target_refuses_what_it_cannot_do(options, message):
    with pytest.raises(ValueError, match=message):
        sb.EncoderTarget(vit(), **options)
