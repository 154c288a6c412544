"""The fast loss equals the slow one, in value and gradient, and keeps its properties."""

import pytest
import torch
from torch import Tensor

import ssl_blocks as sb
from ssl_blocks.parts import match_regions, paired_cross_entropy, region_loss, view_cross_entropy
from ssl_blocks.parts.region_loss import Pairing
from tests.reference import distilled_cross_entropy, matched_places

PAIRINGS = (
    Pairing(0, 3, (1,), 0.5),
    Pairing(3, 5, (0,), 0.25),
    Pairing(5, 9, (0, 1), 0.125),
    Pairing(9, 11, (), 0.5),  # the only view of a teacher is compared with others alone
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(classes: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    match = torch.randint(6, (11, 2), generator=torch.Generator().manual_seed(3))
    return noise(11, classes).requires_grad_(), noise(6, classes, seed=1), noise(classes, seed=2), match


def fast(
    student: Tensor, teacher: Tensor, center: Tensor, match: Tensor, *, overwrite: bool = False
) -> tuple[Tensor, Tensor]:
    temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.04}
    return paired_cross_entropy(student, teacher, center, match, PAIRINGS, **temperatures, overwrite=overwrite)


def slow(student: Tensor, teacher: Tensor, center: Tensor, match: Tensor) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for pairing in PAIRINGS:
        for row in range(pairing.start, pairing.stop):
            for view in pairing.teachers:
                one = distilled_cross_entropy(student[row], teacher[match[row, view]], center, 0.1, 0.04)
                total = total + pairing.weight * one
    return total


@pytest.mark.parametrize("rows", [0, 1, 2, 1000])
def test_loss_and_gradient_equal_the_slow_twin(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_loss, "CHUNK_BYTES_CPU", rows * region_loss.BUFFERS * 7 * 8)
    student, *rest = inputs()
    expected = slow(student, *rest)
    (wanted,) = torch.autograd.grad(expected, student)
    loss, entropies = fast(student, *rest)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(student.grad, 3 * wanted)
    assert not entropies.requires_grad
    weighted = sum(p.weight * entropies[p.start : p.stop, list(p.teachers)].sum() for p in PAIRINGS)
    torch.testing.assert_close(weighted, expected.detach())
    assert torch.equal(entropies[:3, 0], torch.zeros(3, dtype=torch.float64))  # a view is not compared with itself


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_a_compiler_is_given_equals_chunks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    found, calls = [], []
    whole = region_loss._compare_whole
    monkeypatch.setattr(region_loss, "_compare_whole", lambda *args: (calls.append(1), whole(*args))[1])
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        student, teacher, center, match = inputs()
        ours = student.detach().to(dtype).requires_grad_()
        loss, entropies = fast(ours, teacher.to(dtype), center.to(torch.promote_types(dtype, torch.float32)), match)
        loss.backward()
        found.append((loss.detach(), entropies, ours.grad))
    assert len(calls) == len(PAIRINGS)
    for chunks, once in zip(*found, strict=True):
        assert chunks.dtype == once.dtype
        torch.testing.assert_close(chunks, once)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_overwritten_logits_hold_the_gradient_that_others_get_beside_them(dtype: torch.dtype) -> None:
    student, teacher, center, match = inputs()
    weight = noise(7, 7, seed=5, dtype=dtype).requires_grad_()
    found = []
    for overwrite in (False, True):
        features = student.detach().to(dtype).requires_grad_()
        logits = features @ weight
        before = logits.detach().clone()
        loss, _ = fast(logits, teacher.to(dtype), center.to(torch.promote_types(dtype, torch.float32)), match,
                       overwrite=overwrite)  # fmt: skip
        assert torch.equal(logits, before) != overwrite  # positive control: it does write
        gradients = torch.autograd.grad(loss, (features, weight))
        found.append((loss, *gradients))
    for plain, over in zip(*found, strict=True):
        assert torch.equal(plain, over)


def test_logits_that_are_needed_again_or_not_differentiated_are_not_lost_unnoticed() -> None:
    student, *rest = inputs()
    needed = student.sigmoid()  # whose gradient is computed from its result
    loss, _ = fast(needed, *rest, overwrite=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    before = student.detach().clone()
    with torch.no_grad():
        fast(student, *rest, overwrite=True)
    assert torch.equal(student, before)


def test_there_is_no_second_derivative() -> None:
    student, *rest = inputs()
    loss, _ = fast(student, *rest)
    (gradient,) = torch.autograd.grad(loss * student.sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_gradient_equals_finite_differences() -> None:
    student, *rest = inputs(classes=4)
    loss, _ = fast(student, *rest)
    loss.backward()
    with torch.no_grad():
        for place in range(student.numel()):
            step = torch.zeros(student.numel(), dtype=torch.float64)
            step[place] = 1e-6
            step = step.view_as(student)
            slope = (fast(student + step, *rest)[0] - fast(student - step, *rest)[0]) / 2e-6
            torch.testing.assert_close(student.grad.flatten()[place], slope, rtol=1e-5, atol=1e-6)


def test_a_second_backward_pass_is_refused_rather_than_wrong() -> None:
    student, *rest = inputs()
    loss, _ = fast(student, *rest)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_half_precision_is_computed_in_single() -> None:
    student, teacher, center, match = (x.detach() for x in inputs(classes=512))
    halves = student.bfloat16().requires_grad_(), teacher.bfloat16()
    singles = halves[0].detach().float().requires_grad_(), halves[1].float()
    losses = []
    for ours, theirs in (halves, singles):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = fast(ours, theirs, center.float(), match)
        loss.backward()
        losses.append(loss)
    assert losses[0].dtype == torch.float32
    assert halves[0].grad.dtype == torch.bfloat16
    assert torch.equal(*losses)
    torch.testing.assert_close(halves[0].grad.float(), singles[0].grad, rtol=1e-2, atol=1e-4)


def test_a_constant_added_to_student_logits_changes_nothing() -> None:
    student, *rest = inputs()
    shift = noise(11, 1, seed=9)
    (moved, _), (plain, _) = fast(student + shift, *rest), fast(student, *rest)
    torch.testing.assert_close(moved, plain)
    assert (fast(student + noise(11, 7, seed=9), *rest)[0] - plain).abs() > 1e-2  # positive control


def test_teacher_and_center_get_no_gradient() -> None:
    student, teacher, center, match = inputs()
    teacher.requires_grad_(), center.requires_grad_()
    loss, _ = fast(student, teacher, center, match)
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert center.grad is None


def test_regions_match_as_in_the_twin_and_scales_do_not_matter() -> None:
    ours, theirs = noise(3, 5, 4), noise(3, 8, 4, seed=1)
    expected = torch.tensor([matched_places(a, b) for a, b in zip(ours, theirs, strict=True)])
    assert torch.equal(match_regions(ours, theirs), expected)
    stretched = noise(3, 5, 1, seed=2).exp() * ours, noise(3, 8, 1, seed=3).exp() * theirs
    assert torch.equal(match_regions(*stretched), expected)
    dots = (stretched[0] @ stretched[1].transpose(1, 2)).argmax(2)
    assert not torch.equal(dots, expected)  # positive control: without the norms they would
    assert not torch.equal(match_regions(ours, -theirs), expected)


def test_matching_is_not_blurred_by_autocast() -> None:
    ours, theirs = (noise(2, 64, 8, seed=seed, dtype=torch.float32) for seed in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        under = match_regions(ours, theirs)
    assert torch.equal(under, match_regions(ours, theirs))


SIZES = (3, 3, 2)


def views(classes: int, seed: int, sizes: tuple[int, ...] = SIZES) -> list[Tensor]:
    return [noise(2, size, classes, seed=seed + place) for place, size in enumerate(sizes)]


def one_by_one(
    student: list[Tensor], teacher: list[Tensor], center: Tensor, place: Tensor | None
) -> list[list[Tensor]]:
    """Every pair's mean over its regions, for every image."""
    found = []
    for image in range(2):
        means = []
        for q, said in enumerate(teacher):
            for v, view in enumerate(student):
                if v != q:
                    matches = [0] * view.shape[1] if place is None else place[q][v][image]
                    ones = [
                        distilled_cross_entropy(view[image, row], said[image, match], center, 0.2, 0.05)
                        for row, match in enumerate(matches)
                    ]
                    means.append(torch.stack(ones).mean())
        found.append(means)
    return found


@pytest.mark.parametrize("regions", [False, True])
def test_the_loss_on_plain_tensors_is_the_mean_over_pairs(regions: bool) -> None:
    sizes = SIZES if regions else (1, 1, 1)
    student, teacher = [x.requires_grad_() for x in views(7, 0, sizes)], views(7, 10, sizes[:2])
    ours, theirs = views(4, 20), views(4, 30, SIZES[:2])
    center = noise(7, seed=40)
    place = [[list(map(matched_places, view, other)) for view in ours] for other in theirs] if regions else None
    wanted = torch.stack([torch.stack(means) for means in one_by_one(student, teacher, center, place)])
    temperatures = {"student_temperature": 0.2, "teacher_temperature": torch.tensor(0.05, dtype=torch.float64)}
    features = (ours, theirs) if regions else None
    loss, found = view_cross_entropy(student, teacher, center, features=features, **temperatures)
    torch.testing.assert_close(found, wanted.detach())
    torch.testing.assert_close(loss, wanted.mean())
    expected = torch.autograd.grad(wanted.mean(), student)
    torch.testing.assert_close(torch.autograd.grad(loss, student), expected)


def test_the_objective_is_half_of_views_and_half_of_regions() -> None:
    tokens = sb.encoders.timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2, class_token=True)
    head = lambda dim, out: torch.nn.Linear(dim, out)  # noqa: E731
    objective = (
        sb.ViewRegionDistillation(encoder=sb.encoders.TokenRegions(tokens), out_dim=7, head=head).eval().double()
    )
    objective.center.value.copy_(noise(7))
    objective.region_center.value.copy_(noise(7, seed=1))
    images = (noise(2, 3, 8, 8, seed=2), noise(2, 3, 8, 8, seed=3))
    student, teacher = objective.student(images), objective.teacher.copy(images)
    options = {"student_temperature": 0.1, "teacher_temperature": objective.teacher_temperature}
    of_views, _ = view_cross_entropy(
        student.views.view(2, 2, 1, 7).unbind(0),
        teacher.views.view(2, 2, 1, 7).unbind(0),
        objective.center.value,
        **options,
    )
    of_regions, _ = view_cross_entropy(
        student.regions.view(2, 2, 4, 7).unbind(0),
        teacher.regions.view(2, 2, 4, 7).unbind(0),
        objective.region_center.value,
        features=(student.maps, teacher.maps),
        **options,
    )
    torch.testing.assert_close(objective(sb.Views(images, num_global=2)).loss, (of_views + of_regions) / 2)


def test_regions_need_features_and_a_view_another_one() -> None:
    logits = views(7, 0)
    with pytest.raises(ValueError, match="features=None must go with views of one region each"):
        view_cross_entropy(logits, logits[:2], noise(7))
    with pytest.raises(ValueError, match="student=1 views must be more than one: a view is never compared with itself"):
        view_cross_entropy(logits[:1], logits[:1], noise(7))
