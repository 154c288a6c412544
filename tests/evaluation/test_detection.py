"""The pyramid as backbone of torchvision's Mask R-CNN."""

from typing import Any

import pytest
import torch

from ssl_blocks import encoders
from ssl_blocks.data import ShapeImages
from ssl_blocks.evaluation import FeaturePyramid, mask_rcnn

STATISTICS: dict[str, Any] = {"mean": (0.45,) * 3, "std": (0.2,) * 3}
SMALL: dict[str, Any] = {"rpn_post_nms_top_n_train": 50, "box_batch_size_per_image": 16}


def make_pyramid(*, freeze: bool = False, image_size: Any = 32, patch_size: Any = 4) -> FeaturePyramid:
    torch.manual_seed(0)
    encoder = encoders.timm_vit(image_size=image_size, patch_size=patch_size, depth=4, embed_dim=16, num_heads=2)
    return FeaturePyramid(encoder, out_channels=8, freeze=freeze)


@pytest.mark.parametrize("freeze", [True, False])
def test_one_training_step_on_shapes(freeze: bool) -> None:
    """Images larger than the encoder's are resized, and so are their boxes."""
    pyramid = make_pyramid(freeze=freeze)
    model = mask_rcnn(pyramid, num_classes=4, **STATISTICS, **SMALL)
    scene = ShapeImages(1, size=48, seed=0).scene(0)
    losses = model([scene.image.float() / 255], [scene.target()])
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert losses["loss_mask"] > 0
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    sum(losses.values()).backward()
    blocks = pyramid.encoder.module.blocks
    for block in blocks:
        gradient = block.mlp.fc1.weight.grad
        assert gradient is None if freeze else bool(gradient.abs().sum() > 0)
    assert all(p.grad is not None for p in pyramid.levels.parameters())
    before = blocks[0].mlp.fc1.weight.detach().clone()
    optimizer.step()
    assert torch.equal(before, blocks[0].mlp.fc1.weight) == freeze


@pytest.mark.parametrize(("image_size", "patch_size"), [(32, 4), ((64, 48), 8), (224, 16)])
def test_anchors_and_strides_are_where_torchvision_looks_for_them(image_size: Any, patch_size: int) -> None:
    pyramid = make_pyramid(image_size=image_size, patch_size=patch_size)
    model = mask_rcnn(pyramid, num_classes=2, **STATISTICS).eval()
    height, width = pyramid.image_size
    images, _ = model.transform([torch.rand(3, 50, 70)])
    assert images.tensors.shape == (1, 3, height, width)  # neither padded nor transposed
    with torch.no_grad():
        maps = pyramid(images.tensors)
    (anchors,) = model.rpn.anchor_generator(images, list(maps.values()))
    start = 0
    for level, (stride, _) in zip(maps.values(), pyramid.strides, strict=True):
        count = 3 * level.shape[2] * level.shape[3]
        boxes = anchors[start : start + count]
        centres = (boxes[::3, :2] + boxes[::3, 2:]) / 2
        assert torch.equal(centres[1] - centres[0], torch.tensor([stride, 0.0]))
        area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean()
        assert area.sqrt() == pytest.approx(8 * stride, rel=0.15)
        start += count
    assert start == len(anchors)
    boxes = [torch.tensor([[0.0, 0.0, width, height]])]
    model.roi_heads.box_roi_pool(maps, boxes, images.image_sizes)
    assert model.roi_heads.box_roi_pool.scales == [1 / stride for stride, _ in pyramid.strides]


def test_detections_are_in_the_images_own_pixels() -> None:
    model = mask_rcnn(
        make_pyramid(), num_classes=4, box_score_thresh=0.0, box_detections_per_img=5, **STATISTICS
    ).eval()
    with torch.no_grad():
        (found,) = model([torch.rand(3, 96, 64, generator=torch.Generator().manual_seed(0))])
    assert len(found["boxes"])
    assert found["boxes"][:, 2].max() <= 64
    assert 32 < found["boxes"][:, 3].max() <= 96
    assert found["masks"].shape[1:] == (1, 96, 64)


@pytest.mark.parametrize(
    ("sizes", "arguments", "message"),
    [
        (
            {"image_size": 56, "patch_size": 14},
            {},
            r"patch=\(14, 14\) of the encoder must be square, with a power of two",
        ),
        ({"image_size": 32, "patch_size": (4, 8)}, {}, r"patch=\(4, 8\) of the encoder must be square"),
        ({"image_size": 8, "patch_size": 2}, {}, r"patch=\(2, 2\) of the encoder must be square, .* from 4 on"),
        ({"image_size": 20, "patch_size": 4}, {}, "grid 5x5 of the encoder must have even sides"),
        ({}, {"num_classes": 1}, "num_classes=1 must be at least 2"),
        ({}, {"mean": (0.5,)}, r"mean=\(0.5,\) must be one number for each of 3 channels"),
    ],
)
def test_wrong_input(sizes: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_rcnn(make_pyramid(**sizes), **({"num_classes": 4} | STATISTICS | arguments))
