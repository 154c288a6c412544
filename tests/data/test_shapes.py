"""Generated shapes: from a seed, and true to their masks."""

import math
from typing import Any

import pytest
import torch
from torchvision.ops import masks_to_boxes

from ssl_blocks.data import SHAPE_CLASSES, ShapeImages
from ssl_blocks.data.shapes import shape_pixels


@pytest.mark.parametrize("size", [32, (24, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_mask_boxes_and_instances_tell_the_same(size: Any, channels: int) -> None:
    data = ShapeImages(20, size=size, seed=3, max_shapes=4, channels=channels)
    height, width = (size, size) if isinstance(size, int) else size
    for i in range(len(data)):
        scene = data.scene(i)
        assert scene.image.shape == (channels, height, width)
        assert scene.image.dtype == scene.mask.dtype == torch.uint8
        painted = torch.zeros(height, width, dtype=torch.uint8)
        for instance, label in zip(scene.instances, scene.labels.tolist(), strict=True):
            assert not painted[instance].any()  # no two overlap
            painted[instance] = label
        assert torch.equal(painted, scene.mask)
        assert torch.equal(scene.boxes, masks_to_boxes(scene.instances) + torch.tensor([0.0, 0.0, 1.0, 1.0]))
        image, mask = data[i]
        assert torch.equal(image, scene.image)
        assert torch.equal(mask, scene.mask)


def test_every_class_and_several_shapes_occur() -> None:
    scenes = [ShapeImages(40, size=32, seed=0).scene(i) for i in range(40)]
    labels = torch.cat([scene.labels for scene in scenes])
    assert labels.unique().tolist() == [1, 2, 3] == list(range(1, len(SHAPE_CLASSES)))
    assert {len(scene.labels) for scene in scenes} == {1, 2, 3}
    background = torch.stack([scene.mask == 0 for scene in scenes]).float().mean()
    assert 0.6 < background < 0.95


def test_an_image_depends_on_seed_and_index_alone() -> None:
    few, many, other = (ShapeImages(num, size=32, seed=seed) for num, seed in ((3, 0), (9, 0), (3, 1)))
    before = torch.get_rng_state()
    assert all(torch.equal(few[i][0], many[i][0]) for i in range(3))
    assert not any(torch.equal(few[i][0], other[j][0]) for i in range(3) for j in range(3))
    assert not torch.equal(few[0][0], few[1][0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("corners", "angle"), [(None, 0.3), (4, 0.3), (3, 1.1)])
def test_pixels_are_those_inside_the_outline(corners: int | None, angle: float) -> None:
    """A polygon's pixel lies on the same side of all edges; edges run between corners on the circle."""
    centre, radius = (9.3, 11.8), 7.0
    inside = shape_pixels((20, 22), centre, radius, corners, angle)
    turns = [angle + math.pi * (2 * k + 1) / corners for k in range(corners)] if corners else []
    points = [(centre[0] + radius * math.sin(t), centre[1] + radius * math.cos(t)) for t in turns]
    for row in range(20):
        for column in range(22):
            y, x = row + 0.5, column + 0.5
            if corners is None:
                expected = math.hypot(y - centre[0], x - centre[1]) <= radius
            else:
                edges = zip(points, points[1:] + points[:1], strict=True)
                sides = [(qx - px) * (y - py) - (qy - py) * (x - px) for (py, px), (qy, qx) in edges]
                expected = all(side > 0 for side in sides) or all(side < 0 for side in sides)
            assert inside[row, column] == expected


def test_shapes_stand_out_and_colour_tells_no_class() -> None:
    data = ShapeImages(200, size=32, seed=0)
    colours: dict[int, list[torch.Tensor]] = {1: [], 2: [], 3: []}
    for i in range(len(data)):
        scene = data.scene(i)
        for instance, label in zip(scene.instances, scene.labels.tolist(), strict=True):
            colour = scene.image[:, instance].float().mean(1)
            assert colour.max() - colour.min() > 120
            colours[label].append(colour)
        ground = scene.image[:, scene.mask == 0].float().mean(1)
        assert ground.max() - ground.min() < 40
    means = torch.stack([torch.stack(rows).mean(0) for rows in colours.values()])
    assert (means - means.mean(0)).abs().max() < 30  # of colours that deviate by about 90


def test_target_is_torchvisions() -> None:
    target = ShapeImages(1, size=32).scene(0).target()
    assert {name: value.dtype for name, value in target.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "masks": torch.uint8,
    }


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="num=0 must be at least 1"):
        ShapeImages(0, size=32)
    with pytest.raises(ValueError, match="size=8 must be at least 16 pixels"):
        ShapeImages(1, size=8)
    with pytest.raises(ValueError, match="channels=2 must be 1"):
        ShapeImages(1, size=32, channels=2)
    with pytest.raises(IndexError, match=r"index=1 must be within 0..0"):
        ShapeImages(1, size=32).scene(1)
