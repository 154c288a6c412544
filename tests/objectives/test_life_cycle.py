"""before_step and after_step reach every part of an objective once, wherever it sits."""

import copy
import pickle

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.objectives import life_cycle
from ssl_blocks.testing import check_objective
from tests.recipes import build, images

PROGRESS = sb.Progress(step=3, epoch=1, num_steps=10, steps_per_epoch=2)


class Curriculum:
    """A plain partitioner that follows the run."""

    def __init__(self):
        self.calls = []

    def __call__(self, images, grid, *, generator=None):
        return sb.SquarePartitioner(sides=(2,))(images, grid, generator=generator)

    def before_step(self, progress):
        self.calls.append(progress)

    def after_step(self):
        self.calls.append("after")


class Mixture:
    """A plain partitioner that holds others in a container."""

    def __init__(self, *bases):
        self.bases = {"all": list(bases)}

    def __call__(self, images, grid, *, generator=None):
        return self.bases["all"][0](images, grid, generator=generator)


def step(objective):
    objective.before_step(PROGRESS)
    objective.after_step()


def test_a_plain_partitioner_is_told_once_and_what_it_is_told():
    part = Curriculum()
    step(build(part))
    assert part.calls == [PROGRESS, "after"]


def test_parts_inside_parts_are_told_once():
    inner, other, third = Curriculum(), Curriculum(), Curriculum()
    objective = build(sb.ShuffledPartitioner(base=Mixture(sb.ShuffledPartitioner(base=inner), other, inner)))
    objective.serializer = Mixture(third, inner)  # plain objects, shared between parts
    step(objective)
    for part in (inner, other, third):
        assert part.calls == [PROGRESS, "after"]


def test_each_step_tells_anew_and_an_error_in_between_does_not_silence_the_next():
    class Failing(Curriculum):
        def before_step(self, progress):
            super().before_step(progress)
            if len(self.calls) == 1:
                raise RuntimeError("once")

    part = Failing()
    objective = build(part)
    with pytest.raises(RuntimeError, match="once"):
        objective.before_step(PROGRESS)
    objective.before_step(PROGRESS)
    objective.before_step(PROGRESS)
    assert len(part.calls) == 3


class Silent(Curriculum):
    """Keeps no list that would grow, so that nothing but its place tells of it."""

    def __init__(self):
        self.before, self.after = 0, 0

    def before_step(self, progress):
        self.before += 1

    def after_step(self):
        self.after += 1


def put_in_place(objective, part):
    objective.partitioner = part


def put_inside(objective, part):
    objective.partitioner.base = part


def put_into_a_list(objective, part):
    objective.serializer.bases["all"][0] = part


def put_at_the_end(objective, part):
    objective.serializer.bases["all"].append(part)


def put_under_another_name(objective, part):
    del objective.serializer.bases["all"]
    objective.serializer.bases["some"] = [part]


def put_where_nothing_was(objective, part):
    objective.later = part


def put_anew(objective, part):
    objective.newly = part


class Wrapped(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part


def put_in_place_of_a_module(objective, part):
    objective.reader.decoder.layers[1].mlp = Wrapped(part)


@pytest.mark.parametrize(
    "put",
    [
        put_in_place,
        put_inside,
        put_into_a_list,
        put_at_the_end,
        put_under_another_name,
        put_where_nothing_was,
        put_anew,
        put_in_place_of_a_module,
    ],
)
def test_a_part_that_is_put_in_between_steps_is_told_from_then_on(put):
    objective = build(sb.ShuffledPartitioner(base=Silent()))
    objective.serializer, objective.later = Mixture(Silent(), Silent()), None
    step(objective)
    copied = copy.deepcopy(objective)
    for one in (objective, copied, pickle.loads(pickle.dumps(objective))):
        part = Silent()
        step(one)
        put(one, part)
        step(one)
        assert (part.before, part.after) == (1, 1)
    step(objective)
    assert (part.before, part.after) == (1, 1)


def test_parts_are_looked_for_once_while_sums_of_a_step_come_and_go(monkeypatch):
    objective = build(sb.SquarePartitioner(sides=(2,)))  # whose constructor looks at its parts by itself
    walks, walk = [], life_cycle._Parts._walk
    monkeypatch.setattr(life_cycle._Parts, "_walk", lambda parts, owner: (walks.append(owner), walk(parts, owner)))
    objective.center = sb.objectives.teacher.Center(3, 0.9)
    objective.mask.losses, objective.serializer.seen = [], []
    for number in range(5):
        objective.before_step(PROGRESS)
        objective.mask.losses = [float(number)]
        objective.serializer.seen.append(number)
        objective.center.note(torch.full((2, 3), float(number)))
        objective.after_step()
    assert walks == [objective]
    assert objective.center.value.tolist() == pytest.approx([3 * 0.1 * 0.9 + 2 * 0.1 * 0.81 + 0.1 * 0.9**3 + 0.4] * 3)


class PlainTarget:
    """Holds a teacher without being a module itself."""

    def __init__(self, encoder):
        self.teacher = sb.MovingAverage(encoder, momentum=0.5)
        self.dim = encoder.dim

    def __call__(self, images):
        with torch.no_grad():
            return self.teacher.copy.embed(images)


def test_a_module_in_a_plain_part_is_told():
    objective = build(sb.SquarePartitioner(sides=(2,)))
    objective.target = PlainTarget(objective.encoder)
    weight = objective.encoder.module.patch_embed.proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1.0
    step(objective)
    torch.testing.assert_close(objective.target.teacher.copy.module.patch_embed.proj.weight, before + 0.5)


def test_a_teacher_that_two_objectives_share_moves_once():
    randsac = build(sb.SquarePartitioner(sides=(2,)), image_size=8, depth=1)
    teacher = sb.MovingAverage(randsac.encoder, momentum=0.5)
    target = sb.EncoderTarget(teacher)
    parts = {
        name: sb.simmim(encoder=randsac.encoder, tokenizer=randsac.tokenizer, target=target) for name in ("one", "two")
    }
    both = sb.WeightedSum(parts)
    weight = randsac.encoder.module.norm.weight
    with torch.no_grad():
        weight += 1.0
    step(both)
    torch.testing.assert_close(teacher.copy.module.norm.weight, weight - 0.5)
    step(both)
    torch.testing.assert_close(teacher.copy.module.norm.weight, weight - 0.25)
    check_objective(both, images(2, 8), whole_batch=True)


class Own(sb.SegmentPrediction):
    """Overrides a hook, and passes it on."""

    passes_on = True

    def before_step(self, progress):
        self.seen = [*getattr(self, "seen", []), progress]
        if self.passes_on:
            super().before_step(progress)


@pytest.mark.parametrize("passes_on", [True, False])
def test_an_objective_in_a_sum_is_told_once_and_so_are_its_parts(passes_on):
    part, randsac = Curriculum(), build(sb.SquarePartitioner(sides=(2,)))
    common = {"encoder": randsac.encoder, "tokenizer": randsac.tokenizer, "target": randsac.target}
    own = Own(partitioner=part, reader=randsac.reader, **common)
    own.passes_on = passes_on
    both = sb.WeightedSum({"plain": randsac, "own": own})
    step(both)
    assert own.seen == [PROGRESS]
    assert part.calls == [PROGRESS, "after"]
    step(own)  # alone it decides itself
    assert own.seen == [PROGRESS] * 2
    assert part.calls[2:] == ([PROGRESS, "after"] if passes_on else ["after"])


def test_what_an_average_follows_stays_its_owners():
    class Followed(nn.Linear):
        calls = 0

        def after_step(self):
            self.calls += 1

    outside = Followed(2, 2)
    objective = build(sb.SquarePartitioner(sides=(2,)))
    objective.average = sb.MovingAverage(outside, momentum=0.5)
    step(objective)
    assert outside.calls == 0
    assert objective.average.copy.calls == 1


def test_weight_decay_spares_what_parts_name():
    objective = sb.simmim(
        encoder=sb.encoders.timm_vit(image_size=8, patch_size=2, depth=1, embed_dim=16, num_heads=2, class_token=True),
        tokenizer=sb.PatchTokenizer(image_size=8, patch_size=2),
    )
    names = objective.no_weight_decay()
    assert {"reader.query", "encoder.module.cls_token"} <= names <= set(dict(objective.named_parameters()))
