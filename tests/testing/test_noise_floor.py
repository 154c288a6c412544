"""Training on noise tells a leak: what is honest stays at knowing nothing, what leaks falls below."""

import dataclasses
import importlib

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.testing import NotApplicableError, Predicted, noise_floor, watch_loss
from tests.recipes import build
from tests.testing.sabotage import C, Masked, N, P, cut

QUICK = {"steps": 60, "batch_size": 24, "learning_rate": 1e-2}
SHAPE = (C, 8, 8)


@pytest.fixture(autouse=True)
def fewer_batches(monkeypatch):
    monkeypatch.setattr(importlib.import_module("ssl_blocks.testing.noise_floor"), "_BATCHES", 32)


def on(model, **options):
    function = model.predict if isinstance(model, nn.Module) else model
    return noise_floor(function, **{"shape": SHAPE, **QUICK, **options})


@pytest.mark.parametrize("seed", range(2))
def test_an_honest_function_stays_where_it_is(seed):
    found = on(Masked(seed=seed), seed=seed)
    assert not found.leaks, found
    assert found.knowing_nothing == pytest.approx(1.0, abs=0.02)
    assert found.loss >= found.knowing_nothing


def reading(model, patches, given):
    return model.embed(patches)  # nothing is hidden


def image_normalised(model, rows, targets, is_target):
    """Targets are shifted by the mean of the image, most of which is given."""
    return (rows - (targets - 3 * targets.mean((1, 2), keepdim=True)))[is_target].square().mean()


def with_another_term(model, rows, targets, is_target):
    """A term of the loss that does not pass through the rows, and sees all."""
    return (rows - targets)[is_target].square().mean() + (model.branch(targets) - targets).square().mean()


@pytest.mark.parametrize("name", ["see", "loss of the image", "further term", "own patch", "training alone"])
def test_a_leak_falls(name):
    model = Masked(num_given=14 if name == "loss of the image" else 6)
    if name == "see":
        model.see = lambda patches, given: reading(model, patches, given)
    if name == "loss of the image":
        model.rows = lambda patches, given: model.head(
            (patches * given[..., None]).mean((1, 2), keepdim=True).expand(-1, N, P)
        )
        model.loss = lambda *rows: image_normalised(model, *rows)
    if name == "further term":
        model.loss = lambda *rows: with_another_term(model, *rows)
    if name == "own patch":
        model.spoil = lambda m, r, p, g: r + 0.05 * p  # past all weights: zero weights do not stop it
    if name == "training alone":
        model.spoil = lambda m, r, p, g: r + m.gate * p
    found = on(model)
    assert found.leaks, found


def test_the_floor_of_an_objective():
    def made(**options):
        size = {"image_size": 8, "depth": 1, "decoder_depth": 1}
        return build(sb.SquarePartitioner(sides=(2,)), **size, normalize=True, **options)

    class Open:
        def __call__(self, *args):
            masks = sb.SegmentCausalMask()(*args)
            return dataclasses.replace(masks, memory=masks.memory | True)

    honest, leaking = (noise_floor(objective, **(QUICK | {"steps": 40})) for objective in (made(), made(mask=Open())))
    assert not honest.leaks
    assert leaking.leaks
    assert "no leak: after 40 steps on noise the loss is 0.9" in str(honest)
    assert str(leaking).startswith("leaks: after 40 steps")
    assert honest.knowing_nothing == pytest.approx(11 / 12, abs=0.01)  # the unbiased variance of 12 values


def test_nothing_of_the_model_changes():
    objective = build(sb.SquarePartitioner(sides=(2,)), image_size=8, depth=1, decoder_depth=1)
    objective.train()
    objective.head.weight.grad = torch.ones_like(objective.head.weight)
    before, state = {k: v.clone() for k, v in objective.state_dict().items()}, torch.get_rng_state()
    noise_floor(objective, steps=2, batch_size=4)
    assert all(torch.equal(before[k], v) for k, v in objective.state_dict().items())
    assert torch.equal(objective.head.weight.grad, torch.ones_like(objective.head.weight))
    assert objective.encoder.module.pos_embed.grad is None
    assert objective.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_training_step_is_taken_in_one_line():
    class Copying(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.criterion = nn.Linear(P, P), nn.MSELoss()

        def forward(self, images):
            return self.criterion(self.inner(cut(images)), cut(images))

    model = Copying()
    assert on(watch_loss(model, model.criterion)).leaks


def test_what_has_no_floor_is_said():
    encoder = sb.encoders.timm_vit(image_size=8, patch_size=2, embed_dim=16, depth=1, num_heads=2)
    target = sb.EncoderTarget(sb.MovingAverage(encoder, momentum=0.9))
    tokenizer = sb.PatchTokenizer(image_size=8, patch_size=2)
    with pytest.raises(NotApplicableError, match="targets are made by weights"):
        noise_floor(sb.simmim(encoder=encoder, tokenizer=tokenizer, target=target), steps=1, batch_size=2)
    with pytest.raises(ValueError, match="shape=None must be the shape"):
        noise_floor(Masked().predict, steps=1)
    with pytest.raises(ValueError, match="module=None: no weights were found to train"):
        noise_floor(lambda images: Predicted(cut(images), cut(images)), shape=SHAPE)
    with pytest.raises(NotApplicableError, match="has no tokenizer and no target"):
        noise_floor(Joint(), steps=1)


class Joint(sb.Objective):
    def draw(self, images, *, generator=None):
        return None

    def forward(self, images, draw=None):
        raise AssertionError("it is not asked")
