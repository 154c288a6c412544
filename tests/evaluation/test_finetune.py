"""Fine-tuning."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from ssl_blocks import PatchTokenizer, encoders
from ssl_blocks.data import FileSplit, ImageSplit, load, to_float
from ssl_blocks.engine import RunStopped
from ssl_blocks.evaluation import (
    Classifier,
    Extractor,
    Finetuned,
    FinetuneScore,
    FinetuneSettings,
    Labelled,
    LinearSettings,
    ProbeScore,
    augmented_linear_probe,
    classifier_accuracy,
    fewshot_finetune,
    finetune_encoder,
    make_classifier,
)
from ssl_blocks.evaluation.fewshot import draw_shots
from ssl_blocks.evaluation.finetune import FinetuneTask
from tests.evaluation.test_layers import Plain

pytestmark = pytest.mark.process  # takes long

STATISTICS: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def fed(encoder: Any, mean: Any = (0.5,) * 3, std: Any = (0.25,) * 3, tokenizer: Any = None) -> Extractor:
    return Extractor(encoder, mean, std, tokenizer)


def finetuned(encoder: Any, train: ImageSplit | FileSplit, test: ImageSplit | FileSplit, **options: Any) -> Finetuned:
    feeding = {name: options.pop(name) for name in ("mean", "std", "tokenizer") if name in options}
    return finetune_encoder(fed(encoder, **feeding), Labelled(train, test), **options)


def replace(settings: FinetuneSettings, **changes: Any) -> FinetuneSettings:
    return FinetuneSettings(**(settings.model_dump() | changes))


QUICK = FinetuneSettings(base_lr=0.1, batch_size=16, epochs=4, warmup_epochs=1, crop_scale=(0.5, 1.0))
STILL = replace(QUICK, epochs=2, mixup=0.0, cutmix=0.0, magnitude=None, drop_path=0.0)


def bright_and_dark(count: int, seed: int, size: int = 8) -> ImageSplit:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 3, size, size), generator=generator) + 120 * labels[:, None, None, None]
    return ImageSplit(images.to(torch.uint8), labels)


def one_colour_each(count: int) -> ImageSplit:
    """Images that neither crops nor mirrors change."""
    labels = torch.arange(count) % 2
    colours = torch.randint(0, 100, (count, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    images = (colours + 120 * labels[:, None, None, None]).expand(-1, -1, 8, 8)
    return ImageSplit(images.to(torch.uint8).contiguous(), labels)


def tiny(**arguments: Any) -> encoders.TimmViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return encoders.timm_vit(
            image_size=8, patch_size=4, depth=2, embed_dim=16, num_heads=2, class_token=True, reg_tokens=1, **arguments
        )


@pytest.mark.parametrize("fresh_norm", [False, True])
def test_everything_learns_and_the_encoder_given_stays_as_it_is(fresh_norm: bool) -> None:
    encoder, train, test = tiny(), bright_and_dark(48, 0), bright_and_dark(20, 1)
    before, random_state = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    fixed = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert fixed == {"module.pos_embed"}
    settings = replace(QUICK, fresh_norm=fresh_norm)
    done = finetuned(encoder, train, test, settings=settings, **STATISTICS)
    assert done.score.accuracy == 1.0
    assert done.score.num_classes == 2
    assert len(done.score.losses) == 4
    assert done.score.losses[-1] < done.score.losses[0]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert {name for name, p in encoder.named_parameters() if not p.requires_grad} == fixed
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not done.model.training
    for name, value in done.model.backbone.named_parameters():  # positions, class and register tokens among them
        idle = fresh_norm and name.startswith("norm.")
        assert torch.equal(value, before[f"module.{name}"]) == idle, name
    assert FinetuneScore(**done.score.as_dict()) == done.score


def test_a_warm_up_that_is_not_shorter_takes_a_tenth_of_the_run() -> None:
    train, settings = bright_and_dark(20, 0), replace(STILL, batch_size=4)
    model = make_classifier(tiny(), num_classes=2, settings=settings)
    plans = [
        FinetuneTask(model, Labelled(train, train), replace(settings, warmup_epochs=warmup), **STATISTICS).plan
        for warmup in (2.0, 0.2, 1.0)
    ]
    assert [plan.warmup_steps for plan in plans] == [1, 1, 5]


def test_fixed_positions_stay_where_they_are_asked_to() -> None:
    encoder = tiny()
    done = finetuned(
        encoder, bright_and_dark(16, 0), bright_and_dark(4, 1), settings=replace(STILL, train_fixed=False), **STATISTICS
    )
    assert torch.equal(done.model.backbone.pos_embed, encoder.module.pos_embed)
    assert not torch.equal(done.model.backbone.cls_token, encoder.module.cls_token)


def test_training_equals_a_plain_loop() -> None:
    """Without augmentation by chance, the steps are AdamW's on smoothed labels, at rates of layer and schedule."""
    encoder, flat = tiny(), one_colour_each(16)
    settings = FinetuneSettings(
        base_lr=0.016, batch_size=16, epochs=3, warmup_epochs=1, mixup=0.0, cutmix=0.0, magnitude=None, drop_path=0.0
    )
    done = finetuned(encoder, flat, flat, settings=settings, **STATISTICS)
    model = make_classifier(encoder, num_classes=2, settings=settings)
    layers = model.layer_ids()
    spared = ("pos_embed", "cls_token", "reg_token")
    groups = [
        {"params": [p], "weight_decay": 0.0 if p.ndim == 1 or name.endswith(spared) else 0.05, "layer": layers[name]}
        for name, p in model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    x = to_float(flat.images, **STATISTICS)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for share, loss_before in zip((0.0, 1.0, 0.5), done.score.losses, strict=True):
        loss = criterion(model(x), flat.labels)
        assert loss_before == pytest.approx(float(loss.detach()), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.001 * share * 0.65 ** (3 - group["layer"])
        optimizer.step()
    for (name, ours), (_, theirs) in zip(model.named_parameters(), done.model.named_parameters(), strict=True):
        if "qkv.bias" not in name:  # gradients of keys' biases are rounding errors, of which AdamW makes full steps
            torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-5)


def test_accumulation_changes_nothing() -> None:
    encoder, train = tiny(), one_colour_each(32)
    whole = finetuned(encoder, train, train, settings=STILL, **STATISTICS)
    parts = finetuned(encoder, train, train, settings=replace(STILL, accumulate=4), **STATISTICS)
    assert parts.score.losses == pytest.approx(whole.score.losses, rel=1e-5)
    assert whole.score.losses[0] != pytest.approx(whole.score.losses[1], rel=1e-3)
    torch.testing.assert_close(parts.model.head.weight, whole.model.head.weight, rtol=1e-3, atol=1e-5)


def test_small_train_sets_make_smaller_steps() -> None:
    settings = FinetuneSettings()
    assert settings.batch_of(5000) == 1024
    assert settings.batch_of(101) == 100
    assert replace(settings, accumulate=4).batch_of(30) == 24
    with pytest.raises(ValueError, match="train of 1 images must have at least 2, for one step"):
        settings.batch_of(1)


def test_poolings_are_means_of_tokens() -> None:
    encoder, images = tiny(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(4).expand(3, -1)
    hidden = encoder.encode(encoder.embed(images), index).hidden[-1][:, encoder.num_prefix :]
    plain = Classifier(encoder, num_classes=2)
    nn.init.normal_(plain.head.weight)
    torch.testing.assert_close(plain(images), plain.head(encoder.norm(hidden).mean(1)))
    fresh = Classifier(encoder, num_classes=2, fresh_norm=True)
    fresh.head.load_state_dict(plain.head.state_dict())
    expected = fresh.head(nn.functional.layer_norm(hidden.mean(1), (16,), eps=1e-6))
    torch.testing.assert_close(fresh(images), expected)
    assert not torch.allclose(plain(images), fresh(images))


def test_head_starts_near_zero_by_its_generator() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    first, same, other = (Classifier(tiny(), num_classes=5, generator=g).head.weight for g in generators)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert 0 < float(first.detach().abs().max()) < 2e-4


def test_an_encoder_without_tokens_is_trained_with_one_rate_for_all() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Plain()
    settings = replace(STILL, layer_decay=1.0, base_lr=1.0, epochs=10)
    done = finetuned(encoder, bright_and_dark(48, 0), bright_and_dark(20, 1), settings=settings, **STATISTICS)
    assert done.score.accuracy == 1.0
    train = bright_and_dark(8, 0)
    with pytest.raises(ValueError, match=r"layer_decay needs to know .* but Sequential does not tell"):
        finetuned(encoder, train, train, settings=replace(settings, layer_decay=0.5), **STATISTICS)
    with pytest.raises(ValueError, match="fresh_norm=True averages tokens before their norm, but Plain has none"):
        Classifier(encoder, num_classes=2, fresh_norm=True)


def test_few_labels_are_those_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = bright_and_dark(40, 0), bright_and_dark(20, 1)
    asked: list[tuple[int, bool, Any]] = []

    def tuned(_: Extractor, few: Labelled, *, seed: int, **options: Any) -> Any:
        chosen = draw_shots(train.labels, test.labels, 4, torch.Generator().manual_seed(seed))
        asked.append((seed, torch.equal(few.train.images, train.take(chosen).images), options))
        return SimpleNamespace(score=SimpleNamespace(accuracy=float(seed)))

    monkeypatch.setattr("ssl_blocks.evaluation.fewshot.finetune_encoder", tuned)
    score = fewshot_finetune(fed(tiny()), Labelled(train, test), shots=4, seeds=(0, 1), settings=STILL)
    assert asked == [(0, True, {"settings": STILL}), (1, True, {"settings": STILL})]
    assert score == ProbeScore(0.5, 0.5, (0.0, 1.0))
    with pytest.raises(ValueError, match="shots=21 must not exceed the labels of a class, but class 0 has 20"):
        fewshot_finetune(fed(tiny()), Labelled(train, test), shots=21)
    with pytest.raises(ValueError, match=r"seeds=\(\) must be at least one"):
        fewshot_finetune(fed(tiny()), Labelled(train, test), shots=1, seeds=())


def test_images_in_files_and_patches_do_as_well(tmp_path: Path) -> None:
    train = bright_and_dark(16, 0)
    for number, (image, label) in enumerate(zip(train.images, train.labels.tolist(), strict=True)):
        for part in ("train", "test"):
            folder = tmp_path / part / "ab"[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    once = replace(STILL, epochs=1)
    streamed, kept = (load(f"imagefolder:{tmp_path}", image_size=8, storage=how) for how in ("stream", "memory"))
    assert streamed.is_streamed
    scores = [
        finetuned(tiny(), data.train, data.test, settings=once, tokenizer=tokenizer, **STATISTICS).score
        for data, tokenizer in ((kept, None), (streamed, None), (kept, PatchTokenizer(image_size=8, patch_size=4)))
    ]
    assert scores[0] == scores[1]
    assert scores[2].losses == pytest.approx(scores[0].losses, rel=1e-4)
    settings = LinearSettings(batch_size=8, epochs=2, warmup_epochs=1)
    probes = [
        augmented_linear_probe(Extractor(tiny(), **STATISTICS), Labelled(data.train, data.test), settings=settings)
        for data in (kept, streamed)
    ]
    assert probes[0] == probes[1]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_wrong_labels() -> None:
    train, test = bright_and_dark(8, 0), bright_and_dark(4, 1)
    with pytest.raises(ValueError, match="train has no labels"):
        finetuned(tiny(), ImageSplit(train.images, None), test, **STATISTICS)
    with pytest.raises(ValueError, match=r"test must have a label for every image, but 2 of 4 have none \(-1\)"):
        finetuned(tiny(), train, ImageSplit(test.images, test.labels - 1), **STATISTICS)
    with pytest.raises(ValueError, match=r"labels of test must be classes 0\.\.1, for which .* from 0 to 2"):
        finetuned(tiny(), train, ImageSplit(test.images, 2 * test.labels), **STATISTICS)
    with pytest.raises(ValueError, match=r"labels of train must be classes 0\.\.1"):
        finetuned(tiny(), ImageSplit(train.images, 2 * train.labels), test, num_classes=2, **STATISTICS)
    model = Classifier(tiny(), num_classes=2)
    with pytest.raises(ValueError, match=r"labels of test must be classes 0\.\.1"):
        classifier_accuracy(model, ImageSplit(test.images, test.labels + 1), **STATISTICS)
    with pytest.raises(ValueError, match="num_classes=1 must be at least 2"):
        Classifier(tiny(), num_classes=1)


def test_images_that_the_encoder_cannot_take() -> None:
    train, small = bright_and_dark(8, 0), bright_and_dark(8, 0, size=4)
    with pytest.raises(
        ValueError, match=r"images of shape \(1, 3, 4, 4\) do not fit the encoder: expected \[B, 3, 8, 8\]"
    ):
        finetuned(tiny(), small, small, settings=STILL, **STATISTICS)
    grey = ImageSplit(train.images[:, :1], train.labels)
    with pytest.raises(ValueError, match="images have 1 channels, but the encoder takes 3"):
        finetuned(tiny(), grey, grey, settings=STILL, **STATISTICS)


def test_features_and_losses_that_are_not_finite() -> None:
    encoder, train = tiny(), bright_and_dark(32, 0)
    with pytest.raises(RunStopped, match=r"not a finite number in step \d .*no checkpoint.* A smaller base_lr"):
        finetuned(encoder, train, train, settings=replace(STILL, base_lr=1e6), **STATISTICS)
    with torch.no_grad():
        encoder.module.blocks[1].mlp.fc1.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"they are NaN or infinite, first in its layer blocks\.1\.mlp\.fc1"):
        finetuned(encoder, train, train, settings=STILL, **STATISTICS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, r"epochs\n +Input should be greater than 0"),
        ({"base_lr": 0.0}, r"base_lr\n +Input should be greater than 0"),
        ({"layer_decay": 0.0}, r"layer_decay\n +Input should be greater than 0"),
        ({"batch_size": 15}, "batch_size=15 must be a multiple of 2: 1 parts, in which images are mixed in pairs"),
        ({"accumulate": 3, "mixup": 0.0, "cutmix": 0.0}, "batch_size=1024 must be a multiple of 3: 3 parts"),
        ({"mixup": -1.0}, r"mixup\n +Input should be greater than or equal to 0"),
        ({"magnitude": 11}, r"magnitude\n +Input should be less than or equal to 10"),
    ],
)
def test_wrong_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneSettings(**arguments)
