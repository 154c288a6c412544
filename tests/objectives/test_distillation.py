"""Distillation equals EsViT's loss written out; centres, teacher and schedules move as the paper has it."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import ssl_blocks as sb
from ssl_blocks.objectives.heads import LastLayerGate
from tests.recipes import gradients, images
from tests.reference import distillation_loss, spread

HEAD = partial(sb.dino_head, hidden_dim=16, bottleneck_dim=8)
SWIN = {"patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}


def swin() -> sb.encoders.TimmRegions:
    return sb.encoders.timm_regions(image_size=16, **SWIN)


def vit(**options) -> sb.encoders.TokenRegions:
    size = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    return sb.encoders.TokenRegions(
        sb.encoders.timm_vit(image_size=16, patch_size=4, class_token=True, **size, **options)
    )


def build(
    encoder: Callable[[], sb.encoders.RegionEncoder] = swin, seed: int = 0, **options
) -> sb.ViewRegionDistillation:
    torch.manual_seed(seed)
    options = {"out_dim": 12, "head": HEAD} | options
    return sb.ViewRegionDistillation(encoder=encoder(), **options)


def views(batch: int = 3, num_local: int = 2, seed: int = 0, num_global: int = 2) -> sb.Views:
    sizes = [16] * num_global + [8] * num_local
    crops = tuple(images(batch, size, seed=10 * seed + place) for place, size in enumerate(sizes))
    return sb.Views(crops, num_global=num_global)


def stirred(objective: sb.ViewRegionDistillation) -> sb.ViewRegionDistillation:
    """A teacher and centres other than at the start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        centers = [*objective.center.buffers(), *(objective.region_center or nn.Module()).buffers()]
        for value in [*objective.teacher.parameters(), *centers]:
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return objective


def written_out(objective: sb.ViewRegionDistillation, crops: sb.Views) -> Tensor:
    """The loss by the slow twin: every network called view by view."""

    def see(network, crops):
        found, head = [network.encoder.regions(crop) for crop in crops], network.region_head
        return {
            "features": [regions.map for regions in found],
            "views": [network.view_head(regions.pooled) for regions in found],
            "regions": [head(regions.map.flatten(0, 1)).view(*regions.map.shape[:2], -1) for regions in found],
        }

    return distillation_loss(
        see(objective.student, crops.images),
        see(objective.teacher.copy, crops.images[: crops.num_global]),
        {"views": objective.center.value, "regions": objective.region_center.value},
        region_weight=objective.region_weight,
        student_temp=0.1,
        teacher_temp=0.04,
    )


@pytest.mark.parametrize(("encoder", "num_global", "num_local"), [(swin, 2, 2), (swin, 3, 1), (vit, 2, 0), (vit, 1, 1)])
def test_it_equals_esvit_written_out(encoder, num_global: int, num_local: int) -> None:
    objective = stirred(build(encoder).double().eval())
    objective.teacher_temperature.fill_(0.04)  # it was single before
    crops = views(num_local=num_local, num_global=num_global)
    crops = sb.Views(tuple(crop.double() for crop in crops.images), num_global)
    out = objective(crops)
    loss, found = gradients(objective, crops)
    objective.zero_grad()
    expected = written_out(objective, crops)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-9)
    pairs = num_global * (num_global + num_local - 1)
    assert out.predictions.shape == out.targets.shape == (3, pairs, 1)
    torch.testing.assert_close(out.predictions.mean(), expected.detach())  # so that the trainer's mean over rows is it
    assert out.is_target.all()
    assert not (out.step == out.index).any()
    assert len({(q, v) for q, v in zip(out.step[0].tolist(), out.index[0].tolist(), strict=True)}) == pairs


def test_koleo_is_added_of_the_students_features_in_each_global_view() -> None:
    crops = views(batch=4)
    objective, plain = (stirred(build(vit, koleo_weight=weight)) for weight in (0.25, 0.0))
    out, (loss, found) = objective(crops), gradients(objective, crops)
    large = [spread(objective.encoder.features(crop).detach()) for crop in crops.images[:2]]
    expected = plain(crops)
    assert out.metrics["koleo"].item() == pytest.approx(sum(large) / 2, rel=1e-4)
    assert loss.item() == pytest.approx(expected.loss.item() + 0.25 * sum(large) / 2, rel=1e-5)
    torch.testing.assert_close(out.predictions, expected.predictions)  # the rows of pairs are as without it
    assert "koleo" not in expected.metrics
    _, without = gradients(plain, crops)
    same = [name for name in found if torch.allclose(found[name], without[name], atol=1e-7)]
    assert same
    assert all("head" in name for name in same)  # it reaches the encoder alone
    assert (objective.per_part, plain.per_part) == (True, False)


def test_without_regions_it_is_lightlys_dino_loss() -> None:
    from lightly.loss import DINOLoss

    objective, crops = stirred(build(region_weight=0.0)), views()
    objective.encoder.eval()  # no drop path
    theirs = DINOLoss(output_dim=12, teacher_temp=0.04, student_temp=0.1)
    theirs.center.copy_(objective.center.value[None, None])
    student = [objective.student.view_head(objective.encoder.features(crop)) for crop in crops.images]
    teacher = [
        objective.teacher.copy.view_head(objective.teacher.copy.encoder.features(crop)) for crop in crops.images[:2]
    ]
    expected = theirs(teacher, student, teacher_temp=0.04)
    torch.testing.assert_close(objective(crops).loss, expected, rtol=1e-5, atol=1e-6)
    objective.teacher.before_step(progress(7))  # the last step: its momentum is 1
    objective.after_step()
    torch.testing.assert_close(objective.center.value, theirs.center[0, 0])  # lightly, too, updates after use
    assert objective.student.region_head is None
    assert objective.teacher.copy.region_head is None
    assert objective.region_center is None


class Stub(nn.Module):
    """Regions as they are given: to move features alone."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.dim, self.channels = nn.Linear(4, 4), 4, 3

    def regions(self, batch: Tensor) -> sb.values.Regions:
        rows = batch.flatten(1).unflatten(1, (-1, 4))  # [B, R, 4]
        return sb.values.Regions(map=self.module(rows), pooled=rows.mean(1), grid=sb.Grid(1, rows.shape[1]))

    def features(self, batch: Tensor) -> Tensor:
        return self.regions(batch).pooled


def test_permuting_the_regions_of_a_teachers_view_changes_nothing() -> None:
    objective, crops = stirred(build(Stub)).eval(), views(num_local=1)
    one, other, local = crops.images
    flat = other.flatten(1).unflatten(1, (-1, 4))
    mixed = flat[:, torch.randperm(flat.shape[1])].reshape(other.shape)
    plain = objective(crops)
    moved = objective(sb.Views((one, mixed, local), 2))
    torch.testing.assert_close(moved.loss, plain.loss)
    apart = torch.cat([flat[:, :1] + 5, flat[:, 1:]], 1).reshape(other.shape)
    assert (objective(sb.Views((one, apart, local), 2)).loss - plain.loss).abs() > 1e-3  # positive control


def test_scaling_features_by_positive_factors_changes_no_match() -> None:
    """Heads see the features as they are; the match sees their direction alone."""
    objective, crops = stirred(build(Stub)).eval(), views(num_local=1)
    plain, found = objective(crops).loss, objective.teacher.copy.encoder.regions

    def scaling(factor: float):
        def regions(batch: Tensor) -> sb.values.Regions:
            out = found(batch)
            return sb.values.Regions(map=factor * out.map, pooled=out.pooled, grid=out.grid)

        return regions

    head = objective.teacher.copy.region_head
    for factor, is_same in ((7.0, True), (-1.0, False)):
        objective.teacher.copy.encoder.regions = scaling(factor)
        objective.teacher.copy.region_head = Divided(head, factor)
        assert ((objective(crops).loss - plain).abs() < 1e-5) == is_same


class Divided(nn.Module):
    def __init__(self, head: nn.Module, factor: float) -> None:
        super().__init__()
        self.head, self.factor = head, factor

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(rows / self.factor)


def test_no_gradient_reaches_teacher_or_matched_features() -> None:
    objective, crops = build(), views()
    gradients(objective, crops)  # every trained parameter gets one
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    assert not any(p.requires_grad for name, p in objective.named_parameters() if name.startswith("teacher"))


def test_the_teacher_sees_global_views_only() -> None:
    objective, crops = build(), views()
    sizes = []
    found = objective.teacher.copy.encoder.regions
    objective.teacher.copy.encoder.regions = lambda batch: sizes.append(tuple(batch.shape)) or found(batch)
    objective(crops)
    assert sizes == [(6, 3, 16, 16)]


def progress(step: int, num_steps: int = 8, per_epoch: int = 2) -> sb.Progress:
    return sb.Progress(step=step, epoch=step // per_epoch, num_steps=num_steps, steps_per_epoch=per_epoch)


def test_centres_are_moved_after_use_by_the_mean_of_raw_logits() -> None:
    objective, crops = stirred(build()), views()
    before = objective.center.value.clone(), objective.region_center.value.clone()
    seen = [objective.teacher.copy.encoder.regions(crop) for crop in crops.images[:2]]
    means = (
        torch.cat([objective.teacher.copy.view_head(s.pooled) for s in seen]).mean(0),
        torch.cat([objective.teacher.copy.region_head(s.map.flatten(0, 1)) for s in seen]).mean(0),
    )
    objective.before_step(progress(0))
    objective(crops)
    assert torch.equal(objective.center.value, before[0])  # not yet
    objective.eval()
    objective(views(seed=3))  # pictures, say
    objective.train()
    with torch.no_grad():
        objective(views(seed=4))
    objective.after_step()
    for now, old, mean in zip((objective.center.value, objective.region_center.value), before, means, strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * mean)


def test_accumulated_parts_move_the_centres_as_the_whole_batch_does() -> None:
    crops = views(batch=4)
    centers = []
    for parts in (1, 2):
        objective = build()
        objective.before_step(progress(0))
        for part in range(parts):
            rows = slice(part * 4 // parts, (part + 1) * 4 // parts)
            objective(sb.Views(tuple(crop[rows] for crop in crops.images), 2))
        objective.after_step()
        centers.append(torch.cat([objective.center.value, objective.region_center.value]))
    torch.testing.assert_close(*centers)
    assert centers[0].abs().min() > 0


def test_the_teacher_follows_by_a_momentum_that_rises_to_one() -> None:
    objective = build(schedule=sb.TeacherSchedule(momentum=0.5))
    theirs = [p.clone() for p in objective.teacher.copy.encoder.parameters()]
    mine = list(objective.encoder.parameters())
    assert all(torch.equal(a, b) for a, b in zip(theirs, mine, strict=True))  # they start as one
    with torch.no_grad():
        for p in mine:
            p.add_(1.0)
    objective.before_step(progress(0))
    objective.after_step()
    for now, old in zip(objective.teacher.copy.encoder.parameters(), theirs, strict=True):
        torch.testing.assert_close(now, old + 0.5)
    momenta = []
    for step in range(8):
        objective.before_step(progress(step))
        momenta.append(1 - objective.teacher.rate.item())
    assert momenta == sorted(momenta)
    # DINO's schedule: 1 comes after the last of the 8 steps
    assert (momenta[0], momenta[-1]) == (0.5, pytest.approx(1 - 0.25 * (1 + math.cos(math.pi * 7 / 8))))


def test_the_teachers_temperature_goes_by_whole_epochs() -> None:
    schedule = sb.TeacherSchedule(temperature=0.07, warmup_temperature=0.04, warmup_epochs=3)
    objective = build(schedule=schedule)
    found = []
    for step in range(8):
        objective.before_step(progress(step))
        found.append(round(float(objective.teacher_temperature), 6))
    assert found == [0.04, 0.04, 0.055, 0.055, 0.07, 0.07, 0.07, 0.07]
    assert [sb.TeacherSchedule().temperature_at(epoch) for epoch in (0, 5)] == [0.04, 0.04]
    assert sb.TeacherSchedule(temperature=0.07, warmup_epochs=1).temperature_at(0) == 0.04


def test_the_last_layer_stands_still_for_the_first_epoch() -> None:
    objective, crops = build(), views()
    for step, is_open in ((0, False), (1, False), (2, True)):
        objective.before_step(progress(step))
        _, found = gradients(objective, crops)
        last = {name: g for name, g in found.items() if "last_layer" in name}
        assert len(last) == 2
        assert all(bool(g.any()) is is_open for g in last.values())
        assert found["student.view_head.layers.0.weight"].any()
    assert all(g.factor == 1 for g in build().modules() if isinstance(g, LastLayerGate))


def test_the_teacher_has_no_dropout_and_batch_norms_of_its_own() -> None:
    head = partial(HEAD, batch_norm=True)
    objective = build(lambda: sb.encoders.timm_regions(image_size=16, drop_path_rate=0.5, **SWIN), head=head).train()
    modes = {type(part).__name__: part.training for part in objective.teacher.modules()}
    assert modes["BatchNorm1d"] is True
    assert modes["DropPath"] is False
    assert any(part.training for part in objective.encoder.modules())
    before = objective.teacher.copy.view_head.layers[1].running_mean.clone()
    objective(views())
    assert not torch.equal(objective.teacher.copy.view_head.layers[1].running_mean, before)
    objective.eval()
    assert not any(part.training for part in objective.teacher.modules())


def test_the_teachers_encoder_is_exported() -> None:
    objective = build()
    assert objective.export_encoder() is objective.teacher.copy.encoder
    assert all("teacher" not in name for name in objective.no_weight_decay())
    assert any("relative_position_bias_table" in name for name in objective.no_weight_decay())
    assert objective.draw(views()) is None


def test_collapse_shows_in_the_metrics() -> None:
    objective, crops = build().eval(), views(batch=8)
    healthy = objective(crops).metrics
    same = objective(sb.Views(tuple(crop[:1].expand(8, -1, -1, -1) for crop in crops.images), 2)).metrics
    assert same["feature_spread"] < 1e-3 < healthy["feature_spread"]
    with torch.no_grad():
        objective.teacher.copy.view_head.last_layer.parametrizations.weight.original0.fill_(1e-6)
    flat = objective(crops).metrics
    assert float(flat["teacher_entropy"]) == pytest.approx(torch.tensor(12.0).log().item(), rel=1e-4)
    assert healthy["teacher_entropy"] < flat["teacher_entropy"]
    of_views = build(region_weight=0.0).eval()
    out = of_views(crops)
    torch.testing.assert_close(out.metrics["teacher_entropy"] + out.metrics["teacher_kl"], out.loss.detach())


def test_the_loss_falls_and_the_whole_thing_can_be_copied_and_saved() -> None:
    objective, crops = build(swin, freeze_epochs=0), views(batch=8)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(5):
        objective.before_step(progress(step, num_steps=5))
        out = objective(crops)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        objective.after_step()
        losses.append(out.loss.item())
    assert losses[-1] < losses[0]
    again = copy.deepcopy(objective)
    fresh = build(swin, seed=1)
    fresh.load_state_dict(objective.state_dict())
    for other in (again, fresh):
        torch.testing.assert_close(other.eval()(crops).loss, objective.eval()(crops).loss)


def test_two_objectives_can_share_an_encoder() -> None:
    one = build()
    torch.manual_seed(1)
    two = sb.ViewRegionDistillation(encoder=one.encoder, out_dim=6, head=HEAD, region_weight=0.0)
    crops = views()
    (one(crops).loss + two(crops).loss).backward()
    assert one.encoder.module.patch_embed.proj.weight.grad is not None
    assert one.export_encoder() is not two.export_encoder()


def test_a_token_encoder_is_refused_with_what_to_do() -> None:
    encoder = sb.encoders.timm_vit(image_size=8, patch_size=4, depth=1)
    message = r"^encoder=<TimmViT> must be a RegionEncoder: a token encoder fits as TokenRegions\(encoder\)$"
    with pytest.raises(TypeError, match=message):
        sb.ViewRegionDistillation(encoder=encoder, out_dim=4)
    with pytest.raises(TypeError, match=message):
        sb.objectives.JointEmbedding(encoder=encoder, loss=sb.parts.nt_xent)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region_weight": 1.5}, "region_weight=1.5 must be at least 0 and at most 1"),
        ({"center_momentum": -1.0}, "center_momentum=-1.0 must be at least 0"),
        ({"student_temperature": 0.0}, "student_temperature=0.0 must be above 0"),
    ],
)
def test_wrong_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_wrong_schedules_and_views_are_named() -> None:
    with pytest.raises(ValueError, match=r"warmup_temperature=0\.0 must be above 0"):
        sb.TeacherSchedule(warmup_temperature=0.0)
    with pytest.raises(ValueError, match=r"momentum=2\.0 must be at least 0 and at most 1"):
        sb.TeacherSchedule(momentum=2.0)
    for single in (images(2), views(num_global=1, num_local=0)):
        with pytest.raises(ValueError, match="must be Views of at least two crops, got a single one"):
            build()(single)
    with pytest.raises(ValueError, match="VisionTransformer refuses images of 3x6x6 pixels"):
        build(vit)(sb.Views((images(2), images(2, 6)), 1))


def test_bfloat16_on_cpu_is_close_to_single_precision() -> None:
    objective, crops = build().eval(), views()
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(crops)
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.loss, objective(crops).loss, rtol=0.1, atol=0)
