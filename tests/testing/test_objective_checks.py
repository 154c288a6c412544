"""The check of objectives finds what is wrong, and says so."""

import copy

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.testing import RoleError, check_objective
from tests.recipes import build, images

TOKENIZER = sb.PatchTokenizer(image_size=8, patch_size=2)


def vit():
    torch.manual_seed(0)
    return sb.encoders.timm_vit(image_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2)


class Altered(sb.Objective):
    """SimMIM, with something wrong."""

    def __init__(self, change=None, draw=None, forward=None):
        super().__init__()
        self.base = sb.simmim(encoder=vit(), tokenizer=TOKENIZER)
        self.encoder, self.tokenizer = self.base.encoder, TOKENIZER
        self.change, self.other_draw, self.other_forward = change, draw, forward

    def draw(self, images, *, generator=None):
        if self.other_draw is not None:
            return self.other_draw(self.base, images, generator)
        return self.base.draw(images, generator=generator)

    def forward(self, images, draw=None):
        if self.other_forward is not None:
            return self.other_forward(self, images, draw)
        out = self.base(images, self.draw(images) if draw is None else draw)
        out = copy.copy(out)
        for name, value in ({} if self.change is None else self.change(out)).items():
            object.__setattr__(out, name, value)  # its constructor may refuse it
        return out


class WithPart(Altered):
    """Holds a part that counts its calls, where nobody looks."""

    def __init__(self, hold, **options):
        super().__init__(**options)
        self.held = hold(self)


class Hooked:
    def __init__(self):
        self.calls = []

    def before_step(self, progress):
        self.calls.append("before")

    def after_step(self):
        self.calls.append("after")


class Deaf(WithPart):
    def before_step(self, progress):
        """Tells nobody."""


class Eager(WithPart):
    def after_step(self):
        super().after_step()
        self.held.after_step()


class Saving(Altered):
    """Changes what it saves."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil
        self.register_state_dict_post_hook(_spoiled)


def _spoiled(module, state, *_):
    module.spoil(state, "base.head.weight")


def losing(state, name):
    del state[name]


def forgetting(state, name):
    state[name] = torch.zeros_like(state[name])


def drawn_again(objective, images, draw):
    return objective.base(images)


def mixing(objective, images, draw):
    return objective.base(images - images.mean(0), objective.draw(images) if draw is None else draw)


def shifting(out):
    return {"loss": out.loss * torch.rand(())}


def without_head(out):
    return {"loss": out.loss.detach() + out.predictions.sum() * 0 + 1.0}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Altered(draw=lambda b, x, g: b.draw(x)), "default random state untouched where a generator is given"),
        (
            Altered(draw=lambda b, x, g: b.draw(torch.zeros(len(x), 3, 8, 8), generator=g)),
            "a generator of another device to be refused",
        ),
        (Altered(forward=drawn_again), "the same output for the same draw"),
        (Altered(change=shifting), "the same output for the same draw"),
        (Altered(forward=mixing), "of an image alone as in a batch"),
        (Altered(lambda out: {"index": out.index + 16}), "index within the 16 tokens, got 1"),
        (Altered(lambda out: {"loss": out.loss / 0}), "a finite loss in training mode"),
        (Altered(lambda out: {"metrics": {"rows": out.predictions[0, :, 0]}}), "rows to be a scalar"),
        (Altered(lambda out: {"is_target": out.is_target & False}), "finite predictions of something"),
        (Altered(lambda out: {"given": out.is_target[:, :3]}), r"given .* of shape \(3, 16\)"),
        (Altered(lambda out: {"loss": out.loss * len(out.step)}), "the loss to be a sum over images divided by"),
        (Altered(lambda out: {"count": torch.tensor(5)}), "the divisor to be the sum of the images'"),
        (Altered(without_head), "a gradient for every trained parameter, got none for base.encoder"),
        (WithPart(lambda o: nn.Linear(2, 2)), "got none for held.weight, held.bias"),
        (Saving(losing), "a state dict that loads strictly"),
        (Saving(forgetting), "the same loss after loading what was saved"),
        (Deaf(lambda o: Hooked()), "before_step to reach (base|held) once in a step, got 0 calls"),
        (Eager(lambda o: Hooked()), "after_step to reach held once in a step, got 2 calls"),
    ],
)
def test_broken_objectives_are_found(objective, message):
    with pytest.raises(RoleError, match="objective [A-Z][a-z]+[A-Za-z]*: expected .*(" + message + ")"):
        check_objective(objective, images(3, 8))


def mean_of_means(p, t, is_target):
    errors = torch.where(is_target[..., None], p - t, 0.0).square().mean(-1)
    return (errors.sum(1) / is_target.sum(1).clamp(min=1)).mean()


def test_a_mean_of_means_is_found_where_images_have_other_numbers_of_rows():
    objective = build(sb.BlobPartitioner(counts=(5,)), image_size=8, depth=1, decoder_depth=1)
    check_objective(objective, images(3, 8))
    objective.loss = mean_of_means
    with pytest.raises(RoleError, match=r"the loss to be a sum over images divided by output.count"):
        check_objective(objective, images(3, 8))
    assert "count" in check_objective(objective, images(3, 8), whole_batch=True).not_applicable


def test_one_image_is_not_enough():
    with pytest.raises(ValueError, match="images=1 of them must be at least 2"):
        check_objective(Altered(), images(1, 8))


COMPILED = """
import torch, ssl_blocks as sb
from ssl_blocks.testing import RoleError, check_objective
encoder = sb.encoders.timm_vit(image_size=8, patch_size=2, embed_dim=16, depth=1, num_heads=2)
objective = sb.simmim(encoder=encoder, tokenizer=sb.PatchTokenizer(image_size=8, patch_size=2))
assert "compilation" in check_objective(objective, torch.rand(2, 3, 8, 8), compiles=True).passed
inner = objective.target
objective.target = lambda images: inner(images) if images.mean() > -1 else inner(-images)
try:
    check_objective(objective, torch.rand(2, 3, 8, 8), compiles=True)
except RoleError as error:
    print(error)
"""


def test_compilation_is_looked_at_where_it_is_asked_for(bare):
    """In a process of its own: types that are looked at while tests run break the graph."""
    assert "objective SegmentPrediction: expected forward to compile in one graph, got" in bare(COMPILED)
