"""assert_no_leak finds what is wrong, says so, and finds nothing where nothing is."""

import dataclasses

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.testing import LeakError, assert_no_leak
from tests.recipes import build, images

SQUARES = sb.SquarePartitioner(sides=(2,))
BLOBS = sb.BlobPartitioner(counts=(5,))


def tiny(partitioner=SQUARES, **options):
    """A 4x4 grid of 2x2 patches."""
    return build(partitioner, **{"image_size": 8, "depth": 2, **options})


def check(objective, batch=2, **options):
    size = objective.tokenizer.image_size[0]
    generator = torch.Generator().manual_seed(0)
    assert_no_leak(objective, images(batch, size, **options), generator=generator, draws=2)


class Altered(nn.Module):
    """An objective whose output somebody spoils."""

    def __init__(self, base, spoil, head=None):
        super().__init__()
        self.base, self.spoil, self.head = base, spoil, head
        self.tokenizer, self.target, self.draw = base.tokenizer, base.target, base.draw

    def forward(self, images, draw=None):
        out = self.spoil(self, images, self.base(images, draw))
        return dataclasses.replace(out, loss=sb.predicted_mse(out.predictions, out.targets, out.is_target))


def altered(change, base=None, head=None):
    """Replace predictions by ``change(model, images, out)``."""

    def spoil(model, images, out):
        return dataclasses.replace(out, predictions=change(model, images, out))

    return Altered(tiny() if base is None else base, spoil, head)


class AlteredMask:
    """The causal mask, with fields replaced."""

    def __init__(self, **changes):
        self.changes = changes

    def __call__(self, serialization, encoded, predicted, num_prefix, predict_first=False):
        masks = sb.SegmentCausalMask()(serialization, encoded, predicted, num_prefix, predict_first)
        step = serialization.step[:1] if serialization.step_sizes else serialization.step
        source = nn.functional.pad(step[:, encoded], (num_prefix, 0), value=-1)[:, None, None, :]
        target = step[:, predicted][:, None, :, None]
        new = {name: change(getattr(masks, name), source, target) for name, change in self.changes.items()}
        return dataclasses.replace(masks, **new)


# Honest objectives pass


@pytest.mark.parametrize(
    "objective",
    [
        lambda: tiny(class_token=True, reg_tokens=1),
        lambda: tiny(normalize=True, skips=False),
        lambda: tiny(BLOBS, positions="learned", decoder_positions="shared"),
        lambda: tiny(BLOBS, image_size=16, patch_size=4, crop=3),
    ],
)
def test_an_honest_objective_passes(objective):
    check(objective())


def test_an_honest_objective_passes_in_as_many_draws_as_are_looked_at_by_default():
    objective = tiny(BLOBS, class_token=True, predict_first=True)
    assert_no_leak(objective, images(2, 8), generator=torch.Generator().manual_seed(0))


def test_one_image_in_double_precision_is_enough():
    check(tiny().double(), batch=1, dtype=torch.float64)


def test_an_objective_with_dropout_passes_and_keeps_its_modes():
    objective = tiny()
    objective.encoder.module.pos_drop.p = 0.5
    objective.reader.decoder.layers[0].mlp.drop1.p = 0.5
    objective.train()
    objective.encoder.module.norm.eval()
    modes = [module.training for module in objective.modules()]
    check(objective)
    assert [module.training for module in objective.modules()] == modes


def test_modes_are_restored_after_a_leak_too():
    objective = tiny(mask=AlteredMask(memory=lambda mask, source, target: mask | True))
    objective.train()
    with pytest.raises(LeakError):
        check(objective)
    assert all(module.training for module in objective.modules())


def test_the_check_leaves_no_trace():
    objective = tiny()
    objective.register_buffer("calls", torch.zeros(()))

    def count(module, args, out):  # a call that knows of those before is no leak, for buffers are kept between calls
        rows = out.predictions + module.calls.add_(1).clone()
        return dataclasses.replace(out, predictions=rows, loss=sb.predicted_mse(rows, out.targets, out.is_target))

    objective.register_forward_hook(count)
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in objective.named_parameters()}
    batch = images(2, 8)
    before = batch.clone()
    assert_no_leak(objective, batch, generator=torch.Generator().manual_seed(0), draws=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(batch, before)
    assert not batch.requires_grad
    assert all(torch.equal(weights[k], v) and v.grad is None for k, v in objective.named_parameters())
    assert objective.calls == 0


def test_the_surroundings_do_not_matter():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        check(tiny())


def test_nothing_predicted_is_a_value_error():
    partitioner = sb.BlobPartitioner(counts=(2,), mean_range=(50.0, 50.0))
    objective = tiny(partitioner)
    objective.serializer = lambda segments, generator=None: sb.Serialization(
        order=torch.arange(16).expand(2, -1), step=torch.zeros(2, 16, dtype=torch.long)
    )
    with pytest.raises(ValueError, match="nothing is predicted in this draw"):
        check(objective)


def test_an_image_of_one_blob_among_others_is_passed_over():
    objective = tiny(BLOBS)

    def serializer(segments, generator=None):
        batch = segments.levels[0].shape[0]
        step = torch.arange(16).expand(batch, -1) // 4 * (torch.arange(batch) % 2)[:, None]
        return sb.Serialization(order=torch.arange(16).expand(batch, -1), step=step)

    objective.serializer = serializer
    check(objective)


# Masks


@pytest.mark.parametrize("partitioner", [SQUARES, BLOBS], ids=["squares", "blobs"])
@pytest.mark.parametrize("name", ["source", "target", "memory"])
def test_a_full_mask_leaks(name, partitioner):
    objective = tiny(partitioner, mask=AlteredMask(**{name: lambda mask, source, target: mask | True}))
    with pytest.raises(LeakError, match=r"by gradient: the prediction of step .* depends on position"):
        check(objective)


def test_a_memory_mask_one_step_too_permissive_leaks():
    objective = tiny(mask=AlteredMask(memory=lambda mask, source, target: source <= target))
    with pytest.raises(LeakError, match=r"prediction of step 1 in image 0 depends on position \d+ of step 1"):
        check(objective)


def test_a_memory_mask_one_step_too_strict_is_found():
    objective = tiny(mask=AlteredMask(memory=lambda mask, source, target: source < target - 1))
    with pytest.raises(LeakError, match=r"does not depend on position \d+ of the given tokens, which it should see"):
        check(objective)


def test_masks_one_token_too_strict_are_found():
    def hide_first(mask, source, target):  # the others of its segment are seen
        return torch.cat([torch.zeros_like(mask[..., :1]), mask[..., 1:]], dim=-1)

    objective = tiny(mask=AlteredMask(source=hide_first, memory=hide_first))
    with pytest.raises(LeakError, match=r"does not depend on position \d+ of the given tokens"):
        check(objective)


def test_a_class_token_that_sees_patches_leaks():
    def open_first(mask, source, target):
        mask = mask.clone()
        mask[..., 0, :] = True
        return mask

    objective = tiny(class_token=True, mask=AlteredMask(source=open_first))
    with pytest.raises(LeakError, match="depends on position"):
        check(objective)


def test_queries_that_see_the_next_ones_know_where_later_segments_lie():
    # one decoder layer: queries hold no pixels yet when they look at each other, only places
    def one_more(mask, source, target):
        return target.transpose(-1, -2) <= target + 1

    objective = tiny(decoder_depth=1, mask=AlteredMask(target=one_more))
    with pytest.raises(LeakError, match="changes when tokens of later steps exchange their places"):
        check(objective)


# Targets and rows


def test_targets_of_another_window_are_found():
    def unshifted(model, images, out):
        targets = out.draw.take(model.target(images), out.draw.windows()[0])
        return dataclasses.replace(out, targets=targets)

    with pytest.raises(LeakError, match=r"target row 0 of image 0 is not the target of position .* shifted against"):
        check(Altered(tiny(), unshifted))


def test_permuted_target_rows_are_found():
    def permuted(model, images, out):
        return dataclasses.replace(out, targets=torch.cat([out.targets[:, :-2], out.targets[:, -2:].flip(1)], dim=1))

    with pytest.raises(LeakError, match="target row 10 of image 0 is not the target of position"):
        check(Altered(tiny(), permuted))


def test_an_index_and_targets_of_another_segment_are_found():
    def shifted(model, images, out):  # consistent with each other, but not with what was predicted
        index = out.index.roll(4, 1)
        return dataclasses.replace(out, index=index, targets=sb.values.gather_tokens(model.target(images), index))

    with pytest.raises(LeakError, match="by gradient"):
        check(Altered(tiny(), shifted))


def test_rows_that_count_in_the_loss_without_being_targets_are_found():
    def fewer(model, images, out):
        return dataclasses.replace(out, is_target=out.is_target & (out.step > 1))

    objective = tiny()
    objective.register_forward_hook(lambda module, args, out: fewer(module, args, out))
    with pytest.raises(LeakError, match="row 0 of image 0 is no target by is_target, but counts in the loss"):
        check(objective)


def test_targets_that_do_not_count_in_the_loss_are_found():
    objective = tiny()
    objective.register_forward_hook(
        lambda module, args, out: dataclasses.replace(out, loss=out.predictions[:, :-1].square().mean())
    )
    with pytest.raises(LeakError, match="row 11 of image 0 is a target by is_target, but does not count in the loss"):
        check(objective)


def test_a_loss_of_other_predictions_is_found():
    objective = tiny()
    objective.register_forward_hook(
        lambda module, args, out: dataclasses.replace(out, loss=module.head.weight.square().sum())
    )
    with pytest.raises(LeakError, match="the loss is not computed from the predictions"):
        check(objective)


# Leaks past the masks


@pytest.mark.parametrize("size", [1.0, 1e-4], ids=["plain", "faint"])
@pytest.mark.parametrize("detach", [False, True], ids=["gradient", "no gradient"])
def test_a_glimpse_of_the_target_is_found(size, detach):
    def glimpse(model, images, out):
        return out.predictions + size * (out.targets.detach() if detach else out.targets)

    with pytest.raises(LeakError, match="by noise: .* changes with pixels of" if detach else "by gradient: .* depends"):
        check(altered(glimpse))


def test_rounded_pixels_that_pass_no_gradient_are_found():
    def rounded(model, images, out):
        return out.predictions + (images.mean(dim=(1, 2, 3)) * 10).round()[:, None, None]

    with pytest.raises(LeakError, match="by noise"):
        check(altered(rounded))


@pytest.mark.parametrize("detach", [False, True], ids=["gradient", "no gradient"])
@pytest.mark.parametrize(("reader", "read"), [(0, 1), (1, 0)])
def test_an_image_that_sees_another_is_found_in_either_direction(reader, read, detach):
    def mix(model, images, out):
        seen = torch.zeros_like(out.predictions)
        seen[reader] = images[read].detach().mean() if detach else images[read].mean()
        return out.predictions + seen

    how = ("by noise", "changes with") if detach else ("by gradient", "depends on")
    message = f"{how[0]}: the prediction of step [0-9]+ in image {reader} {how[1]} pixels of image {read} in the same"
    with pytest.raises(LeakError, match=message):
        check(altered(mix))


class NormalisedHead(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x):
        return self.norm(x.flatten(0, 1)).view_as(x)


def test_batch_norm_over_tokens_is_found_though_it_mixes_in_training_alone():
    objective = altered(lambda model, images, out: model.head(out.predictions), head=NormalisedHead(12))
    with pytest.raises(LeakError, match=r"by noise in training mode: .* changes with pixels that it may not see"):
        check(objective)
    assert objective.head.norm.num_batches_tracked == 0


def test_pixels_that_the_tokenizer_crops_are_looked_at():
    base = tiny(image_size=16, patch_size=4, crop=2)
    for detach in (False, True):

        def peep(model, images, out, detach=detach):
            corner = images[:, :, 0, 0].mean(1)[:, None, None]
            return out.predictions + (corner.detach() if detach else corner)

        with pytest.raises(LeakError, match="pixels that the tokenizer crops"):
            check(altered(peep, base))


def test_a_forward_that_does_not_follow_its_draw_is_found():
    class Wilful(sb.SegmentPrediction):
        def forward(self, images, draw=None):
            return super().forward(images, None)

    objective = tiny()
    objective.__class__ = Wilful
    with pytest.raises(
        LeakError, match="differ between two calls with the same images and draw: does forward use its draw"
    ):
        check(objective)


# Dead models


def test_a_dead_model_is_found():
    objective = altered(lambda model, images, out: out.predictions * 0)
    with pytest.raises(
        LeakError, match=r"does not depend on position .* \(are weights zero\? is a mask too strict\?\)"
    ):
        check(objective)


def test_a_model_that_ignores_the_encoder_is_found():
    class Nothing(nn.Module):
        def forward(self, hidden, norm):
            return (torch.zeros_like(hidden[0]),) * 2

    objective = tiny()
    objective.reader.router = Nothing()
    with pytest.raises(LeakError, match="does not depend on position"):
        check(objective)


def test_a_leak_is_an_assertion_error():
    assert issubclass(LeakError, AssertionError)
