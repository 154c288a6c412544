"""One pass over masked views: what is hidden, what is compared, and what comes of it written out."""

import pytest
import torch
import torch.nn.functional as F

import ssl_blocks as sb
from ssl_blocks.objectives import DistilledTokens, DistilledViews, JointEmbedding, MaskedViews, SpreadViews
from ssl_blocks.parts import koleo
from ssl_blocks.testing import LeakError, assert_no_leak, check_objective
from tests.recipes import images


def encoder(**options):
    torch.manual_seed(0)
    size = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "class_token": True}
    return sb.encoders.timm_vit(**{**size, **options})


def pass_of(share=1.0):
    return MaskedViews(encoder(), sb.SubsetPartitioner(hidden=0.5), share=share)


def views():
    return sb.Views((images(3, 16, seed=1), images(3, 16, seed=2), images(3, 8, seed=3)), num_global=2)


def draw_of(shared, seed=0):
    return shared.draw(views(), generator=torch.Generator().manual_seed(seed))


def test_the_student_does_not_see_what_is_hidden_and_the_teacher_does():
    shared, whole = pass_of(), views()
    hidden = draw_of(shared)
    assert hidden.shape == (3, 2, 16)
    assert (hidden.sum(-1) == 8).all()
    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
    noise = torch.randn(3, 16, 3, 4, 4) * hidden[:, 0, :, None, None, None]
    changed = sb.Views((whole.images[0] + tokenizer.untokenize(noise), *whole.images[1:]), num_global=2)
    before, after = shared(whole, hidden), shared(changed, hidden)
    assert torch.equal(before.views, after.views)
    assert torch.equal(before.tokens, after.tokens)
    assert not torch.allclose(before.teacher_tokens[:, 0], after.teacher_tokens[:, 0])
    assert torch.equal(before.teacher_tokens[:, 1], after.teacher_tokens[:, 1])


def test_nothing_hidden_is_the_plain_encoder_and_small_crops_are_seen_whole():
    shared, whole = pass_of(), views()
    found = shared(whole, torch.zeros(3, 2, 16, dtype=torch.bool))
    regions = sb.encoders.TokenRegions(shared.encoder)
    for number, view in enumerate(whole.images):
        expected = regions.regions(view)
        torch.testing.assert_close(found.views[:, number], expected.pooled)
        if number < 2:
            torch.testing.assert_close(found.tokens[:, number], expected.map)
            torch.testing.assert_close(found.teacher_tokens[:, number], expected.map)  # the average starts as a copy
    assert not found.teacher_tokens.requires_grad


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_views_is_masked(share):
    shared = pass_of(share)
    many = sb.Views((images(200, 16),) * 2, num_global=2)
    masked = shared.draw(many, generator=torch.Generator().manual_seed(0)).any(-1).float().mean()
    assert masked.item() == pytest.approx(share, abs=0.1)


def entropy(part, student, teacher):
    wanted = F.softmax((part.teacher_head.copy(teacher) - part.center.value) / 0.04, dim=-1)
    return -(wanted * F.log_softmax(part.head(student) / 0.1, dim=-1)).sum(-1)


def parts(shared):
    torch.manual_seed(1)
    of_views, of_tokens = (
        DistilledViews(shared, torch.nn.Linear(16, 8), 8),
        DistilledTokens(shared, torch.nn.Linear(16, 8), 8),
    )
    for part in (of_views, of_tokens):
        part.center.value.copy_(torch.randn(8))
        torch.nn.init.normal_(part.teacher_head.copy.weight)
    return of_views, of_tokens


def test_losses_written_out():
    shared, whole = pass_of(), views()
    of_views, of_tokens = parts(shared)
    seen = shared(whole, draw_of(shared))
    terms = [
        entropy(of_views, seen.views[i, v], seen.teacher_views[i, q])
        for i in range(3)
        for q in range(2)
        for v in range(3)
        if v != q
    ]
    torch.testing.assert_close(of_views(whole, shared=seen).loss, torch.stack(terms).mean())
    out = of_tokens(whole, shared=seen)
    terms = [
        entropy(
            of_tokens,
            seen.tokens[i, g, n],
            seen.teacher_tokens[i, g, n],
        )
        for i, g, n in seen.is_hidden.nonzero().tolist()
    ]
    torch.testing.assert_close(out.loss, torch.stack(terms).mean())
    assert out.divisor == len(terms) == 48
    spread = SpreadViews(shared)(whole, shared=seen).loss
    torch.testing.assert_close(spread, (koleo(seen.views[:, 0]) + koleo(seen.views[:, 1])) / 2)


def test_patches_that_the_student_does_not_see_are_proven_to_be_hidden():
    shared = pass_of()
    of_views, of_tokens = parts(shared)
    both = sb.WeightedSum({"views": of_views, "tokens": of_tokens}, shared=shared)
    report = assert_no_leak(both, views(), generator=torch.Generator().manual_seed(0), draws=2)
    assert report.passed == ("tokens",)
    assert list(report.not_applicable) == ["views"]
    check_objective(both, views(), whole_batch=True)
    hidden = type(shared.encoder)._embedded
    shared.encoder._embedded = lambda tokens: hidden(shared.encoder, tokens + tokens.mean(1, keepdim=True))
    with pytest.raises(LeakError, match=r"^tokens: by gradient: .* depends on position"):
        assert_no_leak(both, views(), generator=torch.Generator().manual_seed(0))


def test_centres_follow_the_teacher_and_the_temperature_its_schedule():
    shared, whole = pass_of(), views()
    schedule = sb.TeacherSchedule(temperature=0.08, warmup_temperature=0.02, warmup_epochs=3)
    part = DistilledTokens(shared, torch.nn.Linear(16, 8), 8, schedule=schedule)
    both = sb.WeightedSum({"tokens": part}, shared=shared)
    both.before_step(sb.Progress(step=4, epoch=1, num_steps=12, steps_per_epoch=4))
    assert part.teacher_temperature.item() == pytest.approx(0.05)
    draw = both.draw(whole)
    seen = shared(whole, draw["shared"])
    both(whole, draw).loss.backward()
    both.after_step()
    mean = part.teacher_head.copy(seen.teacher_tokens).flatten(0, 2).mean(0)
    torch.testing.assert_close(part.center.value, 0.1 * mean)


def test_the_teacher_is_left_behind():
    shared = pass_of()
    both = sb.WeightedSum({"spread": SpreadViews(shared)}, shared=shared)
    assert both.export_encoder() is shared.teacher.copy


def test_wrong_parts_are_refused():
    with pytest.raises(ValueError, match="encoder must have a class token"):
        MaskedViews(encoder(class_token=False), sb.SubsetPartitioner(hidden=0.5))
    with pytest.raises(ValueError, match=r"share=1.5 must be at least 0 and at most 1"):
        pass_of(1.5)
    with pytest.raises(ValueError, match="shared=None must be the pass of MaskedViews"):
        SpreadViews(pass_of())(views())
    one = sb.Views((images(2, 16),), num_global=1)
    shared = pass_of()
    with pytest.raises(ValueError, match="at least two crops"):
        DistilledViews(shared, torch.nn.Linear(16, 8), 8)(one, shared=shared(one, shared.draw(one)))


@pytest.mark.parametrize("kind", [DistilledViews, DistilledTokens, sb.ViewRegionDistillation])
@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((12, 8), r"head must lead from the encoder's 16 values to out_dim=8 classes, but does not take them: "),
        ((16, 6), r"head must lead from the encoder's 16 values to out_dim=8 classes, but gives \[2, 6\] for two"),
    ],
)
def test_a_head_of_other_widths_is_refused_when_the_objective_is_made(kind, widths, message):
    head = torch.nn.Linear(*widths)
    given = {"encoder": sb.encoders.TokenRegions(encoder()), "head": lambda dim, out_dim: head}
    given = given if kind is sb.ViewRegionDistillation else {"views": pass_of(), "head": head}
    with pytest.raises(ValueError, match=message):
        kind(**given, out_dim=8)


def test_a_head_is_tried_without_a_trace():
    head = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
    shared = pass_of()
    state = torch.get_rng_state()
    objective = DistilledViews(shared, head, 8)
    assert torch.equal(state, torch.get_rng_state())
    assert objective.head.training
    assert head[1].num_batches_tracked == 0


def test_joint_embedding_embeds_every_view_for_a_loss():
    seen = []

    def loss(z):
        seen.append(z)
        return z.square().mean()

    regions = sb.encoders.TokenRegions(encoder())
    head = torch.nn.Linear(16, 4)
    out = JointEmbedding(encoder=regions, head=head, loss=loss)(views())
    expected = torch.stack([head(regions.regions(view).pooled) for view in views().images], dim=1)
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(out.loss, expected.square().mean())
    with pytest.raises(ValueError, match="at least two crops"):
        JointEmbedding(encoder=regions, loss=loss)(sb.Views((images(2, 16),), num_global=1))
