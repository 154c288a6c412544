"""Training and scoring segmentation."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_blocks import encoders
from ssl_blocks.data import SHAPE_CLASSES, SegmentationData, ShapeImages
from ssl_blocks.encoders import TimmViT
from ssl_blocks.engine import RunStopped
from ssl_blocks.engine.loop import Loop
from ssl_blocks.evaluation import (
    Extractor,
    FeaturePyramid,
    SegmentationModel,
    SegmentationTraining,
    UPerHead,
    evaluate_segmentation,
    majority_baseline,
    score_segmentation,
    segmentation_loss,
    train_segmentation,
)
from ssl_blocks.evaluation.dense import SegmentationTask, _augment
from tests import reference

pytestmark = pytest.mark.process  # takes long

STATISTICS: dict[str, Any] = {"mean": (0.45,) * 3, "std": (0.2,) * 3}
SHORT = SegmentationTraining(epochs=1, batch_size=4)


def make_encoder(**options: Any) -> TimmViT:
    torch.manual_seed(0)
    return encoders.timm_vit(image_size=32, patch_size=8, depth=4, embed_dim=48, num_heads=3, **options)


def fed(encoder: Any) -> Extractor:
    return Extractor(encoder, **STATISTICS)


def make_model(encoder: TimmViT | None = None, *, freeze: bool = False, num_classes: int = 4) -> SegmentationModel:
    torch.manual_seed(0)
    pyramid = FeaturePyramid(make_encoder() if encoder is None else encoder, out_channels=8, freeze=freeze)
    return SegmentationModel(pyramid, UPerHead(in_channels=8, num_classes=num_classes))


def make_data(num_train: int = 8, num_test: int = 5) -> SegmentationData:
    return SegmentationData(
        ShapeImages(num_train, size=32, seed=1), ShapeImages(num_test, size=32, seed=2), SHAPE_CLASSES
    )


class Fixed:
    """Images and masks given one by one."""

    def __init__(self, images: Tensor, masks: Tensor) -> None:
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.masks[index]


def with_masks(masks: Tensor) -> Fixed:
    images = torch.randint(0, 256, (len(masks), 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return Fixed(images.to(torch.uint8), masks.to(torch.uint8))


def test_a_small_pyramid_learns_the_shapes_it_is_shown_well_above_the_majority() -> None:
    shown = ShapeImages(3, size=32, seed=1)
    data = SegmentationData(shown, shown, SHAPE_CLASSES)
    training = SegmentationTraining(epochs=30, batch_size=3, lr=1e-2, warmup=0.2, crop_scale=None)
    scores = evaluate_segmentation(fed(make_encoder()), data, width=16, training=training)
    chance = majority_baseline(data)
    assert scores.mean_iou > chance.mean_iou + 0.15
    assert scores.pixel_accuracy > chance.pixel_accuracy + 0.05


def test_the_same_seed_makes_the_same_scores() -> None:
    encoder = make_encoder(drop_path_rate=0.1)
    weights = copy.deepcopy(encoder.state_dict())
    before = torch.get_rng_state()

    def run(seed: int) -> Any:
        options: dict[str, Any] = {"width": 8, "training": SHORT, "seed": seed}
        return evaluate_segmentation(fed(encoder), make_data(4, 2), **options)

    first = run(0)
    assert run(0) == first
    assert run(1) != first
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, weights[name]), f"the encoder given was changed: {name}"


@pytest.mark.parametrize("freeze", [True, False])
def test_what_is_trained(freeze: bool) -> None:
    model = make_model(freeze=freeze)
    # a gradient left over from elsewhere must not move frozen weights
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    losses = train_segmentation(model, make_data(4).train, training=SHORT, **STATISTICS)
    assert len(losses) == 1
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    blocks = {name for name in changed if name.startswith("pyramid.encoder")}
    assert bool(blocks) != freeze
    assert {name.split(".")[0] for name in changed - blocks} == {"pyramid", "head"}
    assert model.training


def test_loss_is_the_mean_over_pixels_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=generator)
    masks = torch.randint(0, 3, (2, 4, 4), generator=generator).to(torch.uint8)
    masks[0, :3] = 255
    rows = [
        -logits[b, :, y, x].log_softmax(0)[masks[b, y, x].item()].item()
        for b in range(2)
        for y in range(4)
        for x in range(4)
        if masks[b, y, x] != 255
    ]
    assert segmentation_loss(logits, masks).item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)
    assert segmentation_loss(logits, torch.full_like(masks, 255)).item() == 0


@pytest.mark.parametrize("batch_size", [2, 16])
def test_scores_equal_those_counted_by_hand(batch_size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    masks = torch.randint(0, 3, (5, 32, 32), generator=generator)  # class 3 is not there
    masks[:, :4] = 255
    data, model = with_masks(masks), make_model()
    with torch.no_grad():
        model.head.classify.bias[3] = -1e4  # and never predicted
        model.eval()
        predicted = model((data.images.float() / 255 - 0.45) / 0.2).argmax(1)
        model.train()
    scores = score_segmentation(model, data, SHAPE_CLASSES, batch_size=batch_size, **STATISTICS)
    each, accuracy = reference.overlaps(predicted, masks, 4, 255)
    assert each[3] is None
    assert list(scores.class_iou.values()) == [None if iou is None else pytest.approx(iou) for iou in each]
    present = [iou for iou in each if iou is not None]
    assert scores.mean_iou == pytest.approx(sum(present) / 3)
    assert scores.pixel_accuracy == pytest.approx(accuracy)
    assert scores.num_images == 5
    assert model.training
    assert json.loads(json.dumps(scores.as_dict()))["class_iou"]["triangle"] is None


def test_majority_is_counted_on_training_masks() -> None:
    train, test = torch.zeros(2, 32, 32), torch.zeros(1, 32, 32)
    train[:, :20], train[:, 20:22] = 2, 255
    test[:, :8] = 2
    scores = majority_baseline(SegmentationData(with_masks(train), with_masks(test), SHAPE_CLASSES))
    assert scores.pixel_accuracy == 0.25
    assert scores.class_iou == {"background": 0.0, "circle": None, "square": 0.25, "triangle": None}
    assert scores.mean_iou == pytest.approx(0.125)


def test_masks_that_nothing_can_be_scored_on_are_refused() -> None:
    nothing = with_masks(torch.full((2, 32, 32), 255.0))
    with pytest.raises(ValueError, match="masks must have pixels that count, but all of 2 hold 255 alone"):
        majority_baseline(SegmentationData(nothing, nothing, ("a", "b")))


def test_crops_of_image_and_mask_stay_aligned(generator: torch.Generator) -> None:
    masks = torch.stack([ShapeImages(8, size=64).scene(i).mask for i in range(8)])
    images = (masks * 60)[:, None]
    cut, fitting = _augment(images, masks, (0.3, 0.9), generator)
    assert cut.shape == images.shape
    assert not torch.equal(fitting, masks)
    assert set(fitting.unique().tolist()) <= {0, 1, 2, 3}
    agree = ((cut[:, 0].float() / 60).round() == fitting).float().mean()
    assert agree > 0.95  # all but interpolated edges
    shifted = ((cut[:, 0].float() / 60).round() == fitting.roll(3, 2)).float().mean()
    assert shifted < agree - 0.03  # the check can fail
    same = _augment(images, masks, None, generator)
    assert same[0] is images
    assert same[1] is masks


def test_decay_spares_norms_biases_and_positions() -> None:
    model = make_model(make_encoder(positions="learned", class_token=True))
    training = SegmentationTraining(epochs=5, batch_size=4, lr=1.0, warmup=0.2)
    task = SegmentationTask(model, make_data().train, training, seed=0, **STATISTICS)
    made = Loop(task).configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    decayed, spared = ({names[p] for p in group["params"]} for group in optimizer.param_groups)
    assert decayed | spared == set(names.values())
    assert {"pyramid.encoder.module.pos_embed", "pyramid.encoder.module.cls_token", "head.classify.bias"} <= spared
    assert "head.classify.weight" in decayed
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    rates = []
    for step in range(task.plan.num_steps):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.1


def test_precision_under_autocast() -> None:
    seen = []
    model = make_model()
    model.head.classify.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    options: dict[str, Any] = {"autocast_dtype": torch.bfloat16, **STATISTICS}
    train_segmentation(model, make_data(4).train, training=SHORT, **options)
    score_segmentation(model, make_data().test, SHAPE_CLASSES, **options)
    assert set(seen) == {torch.bfloat16}


def test_modes_while_training_and_scoring() -> None:
    seen: list[bool] = []
    model = make_model(freeze=True).eval()
    model.head.register_forward_hook(lambda head, _, __: seen.append(head.training))
    train_segmentation(model, make_data(4).train, training=SHORT, **STATISTICS)
    assert not model.training
    model.train()
    score_segmentation(model, make_data().test, SHAPE_CLASSES, **STATISTICS)
    assert model.training
    assert seen == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, r"epochs\n +Input should be greater than 0"),
        ({"lr": 0.0}, r"lr\n +Input should be greater than 0"),
        ({"warmup": 1.0}, r"warmup\n +Input should be less than 1"),
        ({"crop_scale": (0.5, 1.5)}, r"crop_scale\n .*must be \(smallest, largest\), both above 0 and at most 1"),
        ({"weight_decay": -0.1}, r"weight_decay\n +Input should be greater than or equal to 0"),
    ],
)
def test_wrong_training(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationTraining(**arguments)


def test_wrong_data() -> None:
    model, masks = make_model(num_classes=3), torch.full((2, 32, 32), 3)
    with pytest.raises(
        ValueError, match=r"masks hold class 3, but must be within 0\.\.2, the 3 classes of the head, or 255"
    ):
        train_segmentation(model, with_masks(masks), training=SHORT, **STATISTICS)
    with pytest.raises(ValueError, match="masks hold class 3"):
        score_segmentation(model, with_masks(masks), ("a", "b", "c"), **STATISTICS)
    with pytest.raises(ValueError, match=r"class_names=\('a', 'b'\) must be 3, the classes of the head"):
        score_segmentation(model, with_masks(masks), ("a", "b"), **STATISTICS)
    with pytest.raises(ValueError, match="data must hold at least one image"):
        train_segmentation(model, with_masks(masks[:0]), training=SHORT, **STATISTICS)
    wrong_size = SegmentationData(ShapeImages(4, size=16), ShapeImages(4, size=16), SHAPE_CLASSES)
    with pytest.raises(ValueError, match=r"images of shape \(1, 3, 16, 16\) must be the encoder's, \[B, 3, 32, 32\]"):
        evaluate_segmentation(fed(make_encoder()), wrong_size, width=8, training=SHORT)


def test_numbers_that_are_not_finite() -> None:
    encoder = make_encoder()
    with torch.no_grad():
        encoder.module.blocks[1].mlp.fc2.bias[0] = float("nan")
    with pytest.raises(ValueError, match="hidden state after block 2 of 4 must be finite"):
        evaluate_segmentation(fed(encoder), make_data(), width=8, training=SHORT)
    model = make_model()
    with torch.no_grad():
        model.head.classify.bias[0] = float("nan")
    with pytest.raises(RunStopped, match=r"not a finite number in step 0 .*no checkpoint.* A smaller lr"):
        train_segmentation(model, make_data(4).train, training=SHORT, **STATISTICS)
