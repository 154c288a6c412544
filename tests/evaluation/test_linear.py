"""The linear probe: its optimizer, its heads, and the choice of a learning rate."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_blocks import encoders
from ssl_blocks.data import ImageSplit
from ssl_blocks.evaluation import (
    Extractor,
    Labelled,
    LinearSettings,
    RawPixels,
    SweepScore,
    augmented_linear_probe,
    linear_probe,
)
from ssl_blocks.evaluation.linear import Lars, LinearHeads, _Probe, head_loss
from ssl_blocks.evaluation.sweep import hold_out, sweep
from tests.reference import lars_step, normalised_columns, warm_cosine

QUICK = LinearSettings(lrs=(1.0,), batch_size=16, epochs=4, warmup_epochs=1)
PAPER = LinearSettings(lrs=(0.1,), batch_size=16384)
STATISTICS: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def replace(settings: LinearSettings, **changes: Any) -> LinearSettings:
    return LinearSettings(**(settings.model_dump() | changes))


def draw(count: int, seed: int, classes: int = 4, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    scale = torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0, 5.0])  # a classifier on raw features would hear one column only
    return scale * (2 * torch.eye(classes, 6)[labels] + noise * torch.randn(count, 6, generator=generator)), labels


def fitted(settings: LinearSettings, x: Tensor, y: Tensor) -> _Probe:
    probe = _Probe(settings, x.shape[1], int(y.max()) + 1, y, "cpu", 0)
    probe.fit(lambda index, epoch: x[index])
    return probe


@pytest.mark.parametrize(("zero", "decay", "trust"), [(False, 0.0, 0.001), (True, 0.0, 0.001), (False, 0.5, 0.02)])
def test_lars_equals_its_definition(zero: bool, decay: float, trust: float) -> None:
    heads = LinearHeads(dim=3, num_classes=2, num_heads=2, generator=torch.Generator().manual_seed(0))
    if zero:
        torch.nn.init.zeros_(heads.weights[1])
    optimizer = Lars(heads, (0.5, 7.0), weight_decay=decay, trust=trust)
    rows = [(name, head) for name, _ in heads.named_parameters() for head in range(2)]
    expected = {row: ((x := getattr(heads, row[0])[row[1]].flatten().tolist()), [0.0] * len(x)) for row in rows}
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for parameter in heads.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for name, head in rows:
            values, momentum = expected[name, head]
            gradient, adapts = getattr(heads, name).grad[head].flatten().tolist(), name == "weights"
            expected[name, head] = lars_step(
                values, gradient, momentum, (0.5, 7.0)[head], adapts=adapts, decay=decay, trust=trust
            )
        optimizer.step()
        for name, head in rows:
            torch.testing.assert_close(getattr(heads, name)[head].flatten(), torch.tensor(expected[name, head][0]))


def test_lars_adapts_and_decays_weights_only() -> None:
    heads = LinearHeads(dim=3, num_classes=2, num_heads=1)
    optimizer = Lars(heads, (1.0,), weight_decay=0.5)
    with torch.no_grad():
        heads.biases[0].fill_(3.0)
    for parameter in heads.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = heads.weights[0].detach().clone()
    optimizer.step()
    assert torch.equal(heads.biases[0], torch.full((2,), 3.0))
    # without a gradient the update is the decay alone, scaled to a thousandth of the weight's norm
    torch.testing.assert_close(heads.weights[0].detach(), before * 0.999)


def test_probe_equals_its_definition_step_by_step() -> None:
    x, y = draw(40, 0)
    settings = LinearSettings(lrs=(20.0,), batch_size=16, epochs=5, warmup_epochs=2)
    orders: list[Tensor] = []
    probe = _Probe(settings, 6, 4, y, "cpu", 3)
    weight, bias = probe.heads.weights[0].detach().clone(), torch.zeros(4)

    def features_of(index: Tensor, epoch: int) -> Tensor:
        orders.append(index)
        return x[index]

    probe.fit(features_of)
    assert [len(index) for index in orders] == [16] * 10  # 40 = 2 * 16 + 8, and 8 are left out of an epoch
    assert len(set(torch.cat(orders[:2]).tolist())) == 32
    assert set(torch.cat(orders).tolist()) == set(range(40))
    state: dict[str, list[float]] = {"weight": [0.0] * 24, "bias": [0.0] * 4}
    for step, index in enumerate(orders):
        rows = normalised_columns(x[index])
        logits = rows @ weight.T + bias
        error = (logits.softmax(1) - torch.eye(4)[y[index]]) / 16
        lr = 20.0 * 16 / 256 * warm_cosine(step, 10, 4)
        flat, state["weight"] = lars_step(
            weight.flatten().tolist(), (error.T @ rows).flatten().tolist(), state["weight"], lr, adapts=True
        )
        weight = torch.tensor(flat).view(4, 6)
        flat, state["bias"] = lars_step(bias.tolist(), error.sum(0).tolist(), state["bias"], lr, adapts=False)
        bias = torch.tensor(flat)
    torch.testing.assert_close(probe.heads.weights[0].detach(), weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(probe.heads.biases[0].detach(), bias, rtol=1e-4, atol=1e-6)
    assert (weight - LinearHeads(dim=6, num_classes=4, num_heads=1).weights[0]).abs().max() > 1e-3


def test_first_weights_are_alike_small_and_of_the_generator() -> None:
    heads = LinearHeads(dim=200, num_classes=50, num_heads=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(heads.weights[0], heads.weights[1])
    assert float(heads.weights[0].detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not heads.biases[0].any()
    assert heads.norm.eps == 1e-6
    assert list(heads.norm.parameters()) == []


def test_loss_of_a_head_leaves_out_what_it_may_not_see() -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    seen = torch.tensor([[True] * 5, [True, False, True, False, True]])
    expected = sum(torch.nn.functional.cross_entropy(logits[head][seen[head]], labels[seen[head]]) for head in range(2))
    torch.testing.assert_close(head_loss(logits, labels, seen), expected)


def test_heads_beside_each_other_learn_what_each_learns_alone() -> None:
    x, y = draw(48, 0)
    both = fitted(replace(QUICK, lrs=(0.5, 20.0)), x, y)
    for place, lr in enumerate((0.5, 20.0)):
        alone = fitted(replace(QUICK, lrs=(lr,)), x, y)
        torch.testing.assert_close(both.heads.weights[place], alone.heads.weights[0])
        torch.testing.assert_close(both.heads.biases[place], alone.heads.biases[0])
        # the ones that choose have seen less
        assert not torch.allclose(both.heads.biases[2 + place], alone.heads.biases[0])


def test_labels_held_out_teach_nothing_to_the_heads_that_choose() -> None:
    x, y = draw(48, 0)
    settings = replace(QUICK, lrs=(0.5, 20.0))
    probe = fitted(settings, x, y)
    lying = y.clone()
    lying[probe.held_out] = (lying[probe.held_out] + 1) % 4
    other = _Probe(settings, 6, 4, lying, "cpu", 0)
    other.held_out = probe.held_out  # labels decide what is held out, so put it back
    other.is_seen = probe.is_seen
    other.fit(lambda index, epoch: x[index])
    for head in range(4):
        same = torch.equal(probe.heads.biases[head], other.heads.biases[head])
        assert same == (head >= 2)


def test_test_images_have_no_say_in_the_choice() -> None:
    x, y = draw(200, 0, noise=2.0)
    settings = LinearSettings(lrs=(1e-4, 30.0, 1e3, 1e6), batch_size=64, epochs=20, warmup_epochs=1)
    honest = linear_probe(x, y, *draw(80, 1, noise=2.0), settings=settings)
    generator = torch.Generator().manual_seed(0)
    test, labels = 100 * torch.randn(30, 6, generator=generator), torch.randint(4, (30,), generator=generator)
    nonsense = linear_probe(x, y, test, labels, settings=settings)
    assert (nonsense.chosen, nonsense.validation) == (honest.chosen, honest.validation)
    assert honest.chosen == honest.candidates[max(range(4), key=lambda i: honest.validation[i])]
    assert max(honest.validation) > min(honest.validation)
    assert honest.accuracy > 0.4
    assert honest == linear_probe(x, y, *draw(80, 1, noise=2.0), settings=settings)
    assert SweepScore(**honest.as_dict()) == honest


def test_norm_makes_up_for_the_scale_of_features() -> None:
    data = (*draw(200, 0), *draw(200, 1))
    settings = LinearSettings(lrs=(300.0,), batch_size=64, epochs=40, warmup_epochs=1)
    assert linear_probe(*data, settings=settings).accuracy > 0.7
    assert linear_probe(*data, settings=replace(settings, normalize=False)).accuracy < 0.7


def test_hold_out_takes_a_share_of_each_class() -> None:
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 2 + [3])
    held = hold_out(labels, 0.25, torch.Generator().manual_seed(0))
    assert labels[held].bincount(minlength=4).tolist() == [5, 2, 1, 0]
    assert len(set(held.tolist())) == len(held)
    assert not torch.equal(held, hold_out(labels, 0.25, torch.Generator().manual_seed(1)))
    with pytest.raises(ValueError, match="a choice needs images to hold out, but every class has one image"):
        hold_out(torch.arange(3), 0.5, torch.Generator())


def test_a_setting_is_chosen_on_images_that_it_was_not_fitted_to() -> None:
    labels, asked = torch.arange(12) % 3, []

    def predict(setting: float, places: Tensor, unseen: Tensor | None) -> Tensor:
        asked.append((setting, places.tolist(), None if unseen is None else unseen.tolist()))
        truth = labels[:4] if unseen is None else labels[unseen]
        return truth if setting == 2.0 else (truth + 1) % 3

    how: dict[str, Any] = {"validation": 0.3, "num_classes": 3, "generator": torch.Generator().manual_seed(0)}
    found = sweep(predict, (1.0, 2.0, 3.0), labels, labels[:4], **how)
    held = hold_out(labels, 0.3, torch.Generator().manual_seed(0)).tolist()
    rest = [place for place in range(12) if place not in held]
    assert asked == [(1.0, rest, held), (2.0, rest, held), (3.0, rest, held), (2.0, [*range(12)], None)]
    assert found == SweepScore(1.0, 2.0, (1.0, 2.0, 3.0), (0.0, 1.0, 0.0), 3)


# --- with augmentation ------------------------------------------------------------------------------------------------


def bright_and_dark(count: int, seed: int) -> ImageSplit:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 3, 8, 8), generator=generator) + 120 * labels[:, None, None, None]
    return ImageSplit(images.to(torch.uint8), labels)


def tiny() -> encoders.TimmViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return encoders.timm_vit(image_size=8, patch_size=4, depth=2, embed_dim=16, num_heads=2, pos_drop_rate=0.5)


def test_augmented_probe_encodes_anew_and_leaves_the_encoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, train, test = tiny(), bright_and_dark(48, 0), bright_and_dark(20, 1)
    encoder.train()
    before, random_state = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    seen: list[Tensor] = []
    features = encoders.TimmViT.features

    def watched(self: encoders.TimmViT, images: Tensor) -> Tensor:
        assert not self.module.training
        seen.append(features(self, images))
        return seen[-1]

    monkeypatch.setattr(encoders.TimmViT, "features", watched)
    settings = LinearSettings(lrs=(0.1, 300.0), batch_size=24, epochs=16, warmup_epochs=1, crop_scale=(0.5, 1.0))
    extractor, data = Extractor(encoder, **STATISTICS), Labelled(train, test)
    score = augmented_linear_probe(extractor, data, settings=settings)
    assert score.accuracy > 0.85
    assert len(score.validation) == 2
    batches = [x for x in seen if len(x) == 24]
    assert len(batches) == 32
    rows = torch.cat(batches).round(decimals=5)
    assert len(rows.unique(dim=0)) > 0.8 * len(rows)  # boxes of whole pixels repeat in images this small
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert encoder.training
    assert encoder.module.training
    assert all(p.grad is None for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert score == augmented_linear_probe(extractor, data, settings=settings)
    assert score != augmented_linear_probe(extractor, data, settings=settings, seed=1)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lrs": ()}, "at least 1 item"),
        ({"lrs": (0.1, 0.0)}, "greater than 0"),
        ({"validation": 1.0}, "less than 1"),
        ({"batch_size": 0}, "greater than 0"),
        ({"momentum": 1.0}, "less than 1"),
        ({"crop_scale": (0.5, 0.2)}, r"must be \(smallest, largest\), both above 0"),
    ],
)
def test_wrong_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearSettings(**arguments)


def test_a_warm_up_that_is_not_shorter_takes_a_tenth_of_the_run() -> None:
    x, y = draw(64, 0)
    probes = [fitted(replace(QUICK, epochs=5, warmup_epochs=warmup), x, y) for warmup in (5.0, 0.5, 4.0)]
    weights = [torch.cat([p.detach().flatten() for p in probe.heads.parameters()]) for probe in probes]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_wrong_labels_and_widths() -> None:
    (x, y), (test, test_labels) = draw(20, 0), draw(8, 1)
    with pytest.raises(ValueError, match=r"test_labels must be classes 0\.\.3, for which the head was made.* 0 to 4"):
        linear_probe(x, y, test, test_labels + (test_labels == 3), settings=QUICK)
    with pytest.raises(ValueError, match=r"train_labels must be classes 0\.\.3.* reach from -1 to 3"):
        linear_probe(x, y - (y == 0).long(), test, test_labels, settings=QUICK)
    with pytest.raises((ValueError, TypeError), match="train_labels"):
        linear_probe(x, y[1:], test, test_labels, settings=QUICK)
    with pytest.raises((ValueError, TypeError), match="test"):
        linear_probe(x, y, test[:, 1:], test_labels, settings=QUICK)


def test_one_broken_feature_is_an_error() -> None:
    (x, y), test = draw(20, 0), draw(8, 1)
    broken = x.clone()
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"train features must be finite, but 1 of 20 rows hold NaN .* first row 3"):
        linear_probe(broken, y, *test, settings=QUICK)
    with pytest.raises(ValueError, match="test features must be finite"):
        linear_probe(x, y, 1 / torch.zeros(8, 6), test[1], settings=QUICK)


def test_rates_for_few_images_move_weights_as_far_as_the_papers_on_imagenet() -> None:
    settings = LinearSettings()
    assert (settings.batch(1_281_167), settings.rates(1_281_167)[1]) == (16384, pytest.approx(0.1))
    assert settings.batch(1000) == 62
    for images in (1_281_167, 1000):
        steps = images // settings.batch(images)
        moved = settings.rates(images)[1] * settings.batch(images) / 256 * steps
        assert moved == pytest.approx(0.1 * 1_281_167 / 256, rel=0.05)
    given = LinearSettings(lrs=(0.5,), batch_size=50)
    assert (given.rates(100), given.batch(100), given.batch(10)) == ((0.5,), 50, 10)


def test_with_few_images_the_papers_rate_stays_near_the_start() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    x = torch.eye(4, 16)[labels] + 0.4 * torch.randn(400, 16, generator=generator)
    split = (x[:300], labels[:300], x[300:], labels[300:])
    assert linear_probe(*split, settings=LinearSettings(epochs=15)).accuracy > 0.85
    assert linear_probe(*split, settings=PAPER).accuracy < 0.7


def test_batches_are_no_smaller_than_their_statistics_allow() -> None:
    assert [LinearSettings().batch(images) for images in (10, 40, 255, 288)] == [10, 16, 16, 18]
    labels = torch.arange(40) % 10
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(10, 64, generator=generator)
    x, test = (centers[labels] + 0.5 * torch.randn(40, 64, generator=generator) for _ in range(2))
    assert linear_probe(x, labels, test, labels).accuracy > 0.8  # 0.1 with batches of two


def test_augmented_probe_keeps_the_levels_of_deep_images() -> None:
    labels = torch.arange(40) % 2
    images = (30000 + 200 * labels)[:, None, None, None].expand(40, 1, 8, 8).contiguous().to(torch.uint16)
    split = ImageSplit(images, labels)
    extractor = Extractor(RawPixels(channels=1, size=(8, 8)), (30100 / 65535,), (0.002,))
    settings = LinearSettings(lrs=(0.1, 10.0), batch_size=20, epochs=20, warmup_epochs=1)
    score = augmented_linear_probe(extractor, Labelled(split, split), settings=settings)
    assert score.accuracy == 1  # in bytes the two classes are one
