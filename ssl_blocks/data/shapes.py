"""Generated images of circles, squares and triangles, with masks, boxes and instances: no download."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import masks_to_boxes

from ssl_blocks.bounds import Count, Depth, Pixels, Seed
from ssl_blocks.doors import checked

SHAPE_CLASSES = ("background", "circle", "square", "triangle")
NUM_CORNERS = {1: None, 2: 4, 3: 3}  # of each class
ATTEMPTS = 20


@checked
@dataclass(frozen=True, eq=False)
class ShapeScene:
    """One generated image and all that is known of it.

    Args:
        image: ``[C, H, W]`` uint8.
        mask: class of every pixel ``[H, W]`` uint8, 0 is background.
        instances: pixels of each of K shapes ``[K, H, W]`` bool; no two overlap.
        boxes: ``[K, 4]``: left, top, right, bottom in pixels, right and bottom just behind the last.
        labels: class of each shape ``[K]`` int64, from 1.
    """

    image: UInt8[Tensor, "c h w"]
    mask: UInt8[Tensor, "h w"]
    instances: Bool[Tensor, "k h w"]
    boxes: Float[Tensor, "k 4"]
    labels: Int[Tensor, " k"]

    def target(self) -> dict[str, Tensor]:
        """Boxes, labels and masks as torchvision's detection models want them."""
        return {"boxes": self.boxes, "labels": self.labels, "masks": self.instances.to(torch.uint8)}


@checked
class ShapeImages(Dataset[tuple[Tensor, Tensor]]):
    """Images of one to ``max_shapes`` shapes on a textured background, with a mask of classes.

    Classes are background, circle, square and triangle (`SHAPE_CLASSES`). Colour, size, place and rotation are drawn
    independently of the class, so that nothing but the form tells classes apart. Image i depends on
    seed and i alone: another ``num`` changes no image.

    Args:
        num: number of images.
        size: height and width in pixels; one number means a square.
        seed: two seeds make unrelated images.
        max_shapes: most shapes of an image; fewer where there is no room.
        channels: 3, or 1 for grey.

    Raises:
        ValueError: if a number is below 1, a side below 16, or ``channels`` neither 1 nor 3.

    Examples:
        >>> data = ShapeImages(4, size=32, seed=0)
        >>> image, mask = data[0]
        >>> image.shape, mask.shape, data.scene(0).boxes.shape[1]
        (torch.Size([3, 32, 32]), torch.Size([32, 32]), 4)
    """

    def __init__(
        self,
        num: Count,
        *,
        size: Pixels | tuple[Pixels, Pixels],
        seed: Seed = 0,
        max_shapes: Depth = 3,
        channels: Literal[1, 3] = 3,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        self.num, self.seed, self.max_shapes, self.channels = num, seed, max_shapes, channels
        if min(self.size) < 16:
            raise ValueError(f"size={size} must be at least 16 pixels: smaller shapes look alike")

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "c h w"], UInt8[Tensor, "h w"]]:
        """Image ``[C, H, W]`` and mask ``[H, W]``, both uint8."""
        scene = self.scene(index)
        return scene.image, scene.mask

    def scene(self, index: int) -> ShapeScene:
        """Generate image ``index`` with boxes and instances.

        Raises:
            IndexError: if there is no such image.
        """
        if not 0 <= index < self.num:
            raise IndexError(f"index={index} must be within 0..{self.num - 1}")
        rng = np.random.default_rng((self.seed, index))
        pixels = _background(rng, self.size)
        mask = np.zeros(self.size, np.uint8)
        instances, labels = [], []
        for _ in range(int(rng.integers(1, self.max_shapes + 1))):
            label = int(rng.integers(1, len(SHAPE_CLASSES)))
            inside = _place(rng, mask > 0, NUM_CORNERS[label])
            if inside is not None:
                pixels[inside] = _colour(rng) + rng.normal(0, 6, (int(inside.sum()), 3))
                mask[inside] = label
                instances.append(inside)
                labels.append(label)
        shapes = torch.from_numpy(np.stack(instances))
        boxes = masks_to_boxes(shapes) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # torchvision's end with the last pixel
        return ShapeScene(_to_image(pixels, self.channels), torch.from_numpy(mask), shapes, boxes, torch.tensor(labels))


def _background(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    """Dull clouds with noise on top, ``[H, W, 3]`` on the 0..255 scale."""
    clouds = Image.fromarray(rng.integers(60, 150, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(clouds.resize((size[1], size[0]), Image.Resampling.BICUBIC), np.float64)
    grey = smooth.mean(2, keepdims=True)
    return np.asarray(0.7 * grey + 0.3 * smooth + rng.normal(0, 12, (*size, 1)))


def _colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """A saturated colour: one channel high, one low, one anything."""
    return rng.permutation(np.array([rng.uniform(200, 255), rng.uniform(0, 50), rng.uniform(0, 255)]))


def _place(rng: np.random.Generator, taken: NDArray[np.bool_], corners: int | None) -> NDArray[np.bool_] | None:
    """Pixels of a shape that touches no other and lies inside; ``None`` where there is no room."""
    height, width = taken.shape
    short = min(height, width)
    for _ in range(ATTEMPTS):
        radius = rng.uniform(0.15, 0.28) * short
        centre = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
        inside = shape_pixels((height, width), centre, radius, corners, rng.uniform(0, 2 * math.pi))
        if not (taken & inside).any():
            return inside
    return None


def shape_pixels(
    size: tuple[int, int], centre: tuple[float, float], radius: float, corners: int | None, angle: float
) -> NDArray[np.bool_]:
    """Pixels whose centre lies in a circle, or in the regular polygon of so many corners inscribed in it.

    Sizes, centre and radius are in pixels, row before column; pixel (0, 0) reaches from 0 to 1. The angle is that of
    the normal of one side, in radians.

    Examples:
        >>> shape_pixels((4, 4), centre=(2.0, 2.0), radius=1.5, corners=None, angle=0.0).astype(int)
        array([[0, 0, 0, 0],
               [0, 1, 1, 0],
               [0, 1, 1, 0],
               [0, 0, 0, 0]])
    """
    y, x = np.ogrid[: size[0], : size[1]]
    y, x = y + 0.5 - centre[0], x + 0.5 - centre[1]
    if corners is None:
        return np.asarray(x**2 + y**2 <= radius**2)
    normals = angle + 2 * math.pi * np.arange(corners) / corners
    distances = x[..., None] * np.cos(normals) + y[..., None] * np.sin(normals)
    return np.asarray(distances.max(-1) <= radius * math.cos(math.pi / corners))


def _to_image(pixels: NDArray[np.float64], channels: int) -> UInt8[Tensor, "c h w"]:
    array = pixels.round().clip(0, 255).astype(np.uint8)
    if channels == 1:
        array = np.asarray(Image.fromarray(array).convert("L"))[..., None]
    return torch.from_numpy(array.transpose(2, 0, 1).copy())
