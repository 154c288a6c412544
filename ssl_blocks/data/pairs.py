"""Images with a mask of classes: from folders, from Pascal VOC, or generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from ssl_blocks.bounds import Channels, Classes, Pixels, Seed
from ssl_blocks.data.arrays import Range, check_range
from ssl_blocks.data.files import SUFFIXES, UnreadableImageError, read_image, read_shape
from ssl_blocks.data.items import every
from ssl_blocks.data.resample import central_part, cover_of, fit_images
from ssl_blocks.data.shapes import SHAPE_CLASSES, ShapeImages
from ssl_blocks.doors import checked
from ssl_blocks.files import at_home
from ssl_blocks.randomness import mix_seed

IGNORED = 255  # value of mask pixels that belong to no class
NUM_SHAPES = (500, 200)  # generated images for training and for testing
HELD_OUT_SHARE = 0.1
NUM_LOOKED_AT = 100  # masks of a folder


def voc_classes() -> tuple[str, ...]:
    """Pascal VOC's 21 classes, as torchvision's segmentation models name them."""
    from torchvision.models.segmentation import FCN_ResNet50_Weights

    return ("background", *FCN_ResNet50_Weights.DEFAULT.meta["categories"][1:])


@runtime_checkable
class MaskedImages(Protocol):
    """Images ``[C, H, W]`` uint8 or uint16 with masks ``[H, W]`` uint8, all of one size; 255 marks ignored pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image and its mask."""
        ...


@checked
@dataclass(frozen=True, eq=False)
class SegmentationData:
    """What a segmentation model is trained and tested on.

    Args:
        train: images and masks.
        test: the same, none of them in ``train``.
        class_names: one per class, by index.
        name: of the data.
    """

    train: MaskedImages
    test: MaskedImages
    class_names: tuple[str, ...]
    name: str = "masks"

    @property
    def num_classes(self) -> int:
        """Number of classes, background included where it is one."""
        return len(self.class_names)


@checked
def load_segmentation(
    name: str,
    *,
    image_size: Pixels | tuple[Pixels, Pixels],
    num_classes: Classes | None = None,
    channels: Channels = 3,
    root: str | Path = ".data",
    seed: Seed = 0,
    value_range: Range | None = None,
) -> SegmentationData:
    """Find images and masks by name.

    Args:
        name: ``shapes`` (generated); ``voc`` (Pascal VOC 2012 in ``root``, as torchvision unpacks it, or ``voc:PATH``:
            its train split for training, val for testing); or ``maskfolder:PATH``: ``images/`` and ``masks/`` below
            PATH/train and PATH/test (or val), or below PATH, of which then 10 % are held out.
        image_size: height and width in pixels; one number means a square. Images are resized until they cover it, and
            the centre is cropped; masks follow without interpolation.
        num_classes: of a mask folder; other data knows its own.
        channels: of the images, as of `ssl_blocks.data.load`.
        root: folder of Pascal VOC.
        seed: decides which images are generated, or held out.
        value_range: the values that are black and white in images of files; ``None``: those of 8 bits.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if the name is unknown, ``num_classes`` is missing or unwanted, or images and masks do not fit
            together.

    Examples:
        >>> data = load_segmentation("shapes", image_size=32)
        >>> data.class_names, len(data.train), len(data.test)
        (('background', 'circle', 'square', 'triangle'), 500, 200)
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    kind, _, path = name.partition(":")
    if (kind == "maskfolder") != (num_classes is not None):
        wish = "must be given" if kind == "maskfolder" else "is for mask folders only, and must be None"
        raise ValueError(f"num_classes={num_classes} {wish} for name={name!r}")
    how: dict[str, Any] = {"size": size, "channels": channels}
    if name == "shapes":
        shapes = [ShapeImages(num, seed=mix_seed(seed, part), **how) for part, num in enumerate(NUM_SHAPES)]
        return SegmentationData(shapes[0], shapes[1], SHAPE_CLASSES, name)
    how["value_range"] = value_range
    if kind == "voc":
        train, test = (voc_images(path or root, part, **how) for part in ("train", "val"))
        return SegmentationData(train, test, voc_classes(), name)
    if kind == "maskfolder" and path and num_classes is not None:
        parts = _split_folder(at_home(path), seed, how | {"num_classes": num_classes})
        return SegmentationData(*parts, tuple(map(str, range(num_classes))), name)
    raise ValueError(f"name={name!r} must be 'shapes', 'voc', 'voc:PATH' or 'maskfolder:PATH'")


@checked
class ImageMaskFiles(Dataset[tuple[Tensor, Tensor]]):
    """Files of images and of their masks, decoded whenever they are asked for.

    Masks are grey or palette pictures of 8 bits whose pixels are class indices; 255 is ignored.

    Args:
        images: one file per image.
        masks: one file for each of them, in the same order.
        size: height and width in pixels that both are brought to.
        num_classes: classes are 0 to ``num_classes - 1``.
        channels: of the images, as of `ssl_blocks.data.load`.
        value_range: the values that are black and white; ``None``: those of 8 bits.

    Raises:
        ValueError: if there are no images, a mask is missing, has another size than its image, or is no picture of
            8-bit indices; when an item is read, if its mask holds another class.
    """

    def __init__(
        self,
        images: Sequence[Path],
        masks: Sequence[Path],
        *,
        size: tuple[Pixels, Pixels],
        num_classes: Classes,
        channels: Channels = 3,
        value_range: Range | None = None,
    ) -> None:
        if not images or len(images) != len(masks):
            raise ValueError(f"images must be at least one, with one mask each, got {len(images)} and {len(masks)}")
        self.images, self.masks = tuple(images), tuple(masks)
        check_range(value_range)
        self.size, self.num_classes, self.channels, self.value_range = size, num_classes, channels, value_range
        for image, mask in zip(images, masks, strict=True):
            if not mask.is_file():
                raise ValueError(f"{image} has no mask: expected {mask}")
            _, height, width = read_shape(image, channels=channels)
            with _open_mask(mask) as picture:
                if picture.size != (width, height):
                    own = "x".join(map(str, picture.size))
                    raise ValueError(f"{mask} of {own} pixels must be as large as its image, {width}x{height}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[UInt[Tensor, "c h w"], UInt8[Tensor, "h w"]]:
        """Image ``[C, H, W]`` uint8 (uint16 with a ``value_range``) and mask ``[H, W]`` uint8."""
        # not at once in the size wanted: a JPEG that is decoded with less detail may be a pixel off its mask
        whole = read_image(self.images[index], channels=self.channels, value_range=self.value_range)
        image = fit_images(whole, self.size)
        file = self.masks[index]
        with _open_mask(file) as picture:
            mask = torch.from_numpy(np.array(picture))
        wrong = mask[(mask >= self.num_classes) & (mask != IGNORED)]
        if len(wrong):
            raise ValueError(
                f"{file} holds class {int(wrong.max())}, but classes must be within 0..{self.num_classes - 1}, or "
                f"{IGNORED} for ignored pixels"
            )
        return image, fit_mask(mask, self.size)


def fit_mask(mask: UInt8[Tensor, "h w"], size: tuple[int, int]) -> UInt8[Tensor, "p q"]:
    """Do to a mask what `fit_images` does to its image, without mixing classes."""
    mask = central_part(mask, size)
    cover = list(cover_of(mask.shape, size))
    resized = TF.resize(mask[None], cover, interpolation=InterpolationMode.NEAREST_EXACT)
    fitted: Tensor = TF.center_crop(resized, list(size))[0]
    return fitted


@checked
def mask_folder(
    path: Path,
    *,
    size: tuple[Pixels, Pixels],
    num_classes: Classes,
    channels: Channels = 3,
    value_range: Range | None = None,
) -> ImageMaskFiles:
    """Pair ``images/`` and ``masks/*.png`` below a folder by the stems of their names.

    Raises:
        FileNotFoundError: if one of the two folders is missing.
        ValueError: if an image has no mask or a mask no image, two images share a stem, or as `ImageMaskFiles`.
    """
    for name in ("images", "masks"):
        if not (path / name).is_dir():
            raise FileNotFoundError(f"maskfolder:{path} must hold a folder {name!r}")
    images: dict[str, Path] = {}
    for file in sorted((path / "images").iterdir()):
        if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
            if file.stem in images:
                raise ValueError(f"{file} and {images[file.stem].name} must not share one mask: rename one")
            images[file.stem] = file
    masks = {file.stem: file for file in sorted((path / "masks").glob("*.png")) if not file.name.startswith(".")}
    if not images:
        raise ValueError(f"{path / 'images'} must hold images ({', '.join(SUFFIXES)})")
    for stem, file in masks.items():
        if stem not in images:
            raise ValueError(f"{file} has no image of the same stem in {path / 'images'}")
    paired = [path / "masks" / f"{stem}.png" for stem in images]
    how: dict[str, Any] = {"num_classes": num_classes, "channels": channels, "value_range": value_range}
    found = ImageMaskFiles(list(images.values()), paired, size=size, **how)
    _refuse_black_and_white(paired)
    return found


def _refuse_black_and_white(masks: Sequence[Path]) -> None:
    """Refuse masks in which 255 is meant as a class: nothing but one class would be left to learn."""
    values: set[int] = set()
    for place in every(len(masks), NUM_LOOKED_AT):
        with _open_mask(masks[place]) as picture:
            values |= set(np.unique(np.array(picture)).tolist())
    if IGNORED in values and len(values) == 2:
        only = min(values)
        raise ValueError(
            f"{masks[0].parent} must hold at least two classes, but its masks hold {only} and {IGNORED}, which marks "
            f"pixels of no class: write {1 - only if only < 2 else 0} where {IGNORED} means a class"
        )


@checked
def voc_images(
    root: str | Path,
    image_set: str,
    *,
    size: tuple[Pixels, Pixels],
    year: str = "2012",
    channels: Channels = 3,
    value_range: Range | None = None,
) -> ImageMaskFiles:
    """Pascal VOC's images with segmentation masks, as torchvision's ``VOCSegmentation`` finds them; 21 classes.

    Args:
        root: folder that holds ``VOCdevkit``; nothing is downloaded.
        image_set: ``train``, ``val`` or ``trainval``.
        size: height and width in pixels that images and masks are brought to.
        year: of the challenge.
        channels: 3, or 1 for grey.
        value_range: the values that are black and white; ``None``: those of 8 bits.

    Raises:
        FileNotFoundError: if ``root`` does not hold the data.
        ValueError: as `ImageMaskFiles`, or as torchvision for an unknown year or set.
    """
    from torchvision.datasets import VOCSegmentation

    try:
        found = VOCSegmentation(at_home(root), year=year, image_set=image_set, download=False)
    except (RuntimeError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"root={str(root)!r} must hold VOCdevkit/VOC{year} with the split {image_set!r}: unpack the archive there"
        ) from error
    images, masks = ([Path(file) for file in files] for files in (found.images, found.masks))
    how: dict[str, Any] = {"num_classes": len(voc_classes()), "channels": channels, "value_range": value_range}
    return ImageMaskFiles(images, masks, size=size, **how)


def _split_folder(path: Path, seed: int, options: dict[str, Any]) -> tuple[MaskedImages, MaskedImages]:
    if (path / "train").is_dir():
        held_out = next((path / part for part in ("test", "val") if (path / part).is_dir()), path / "test")
        return mask_folder(path / "train", **options), mask_folder(held_out, **options)
    whole = mask_folder(path, **options)
    if len(whole) < 2:
        raise ValueError(f"maskfolder:{path} must hold at least two images, one to train and one to test on")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed)).tolist()
    num_test = max(1, round(HELD_OUT_SHARE * len(whole)))
    return Subset(whole, sorted(order[num_test:])), Subset(whole, sorted(order[:num_test]))


def _open_mask(file: Path) -> Image.Image:
    try:
        picture = Image.open(file)
    except OSError as error:
        raise UnreadableImageError(f"{file} must be a readable mask: {str(error).splitlines()[0]}") from error
    if picture.mode not in ("L", "P"):
        mode = picture.mode
        picture.close()
        raise ValueError(f"{file} must hold one class index of 8 bits per pixel (mode L or P), but its mode is {mode}")
    return picture
