"""Images and their labels, made and checked once."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt
from torch import Tensor

from ssl_blocks.data import FileSplit, ImageData, ImageSplit
from ssl_blocks.doors import checked
from ssl_blocks.evaluation.checks import check_classes, labels_of
from ssl_blocks.evaluation.protocol import CannotScoreError

CHUNK = 2048  # images that are decoded at a time


@checked
@dataclass(frozen=True, eq=False)
class Labelled:
    """What protocols train and test on: every image has a label, and every class of test is known in train.

    Args:
        train: images and labels.
        test: the same, of the same shape.
        name: of the data.
        class_names: by label; empty where they have none.
        value_range: which values of the source are 0 and 1 on the scale of mean and std; ``None``: those of 8 bits.

    Raises:
        ValueError: if a split is empty, labels are missing, test has a class that train has not, or shapes differ.
    """

    train: ImageSplit | FileSplit
    test: ImageSplit | FileSplit
    name: str = "images"
    class_names: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        labels_of("train", self.train)
        check_classes("labels of test", labels_of("test", self.test), self.num_classes)
        if self.train.shape != self.test.shape:
            raise ValueError(f"test images of {self.test.shape} must have the shape of train's, {self.train.shape}")

    @classmethod
    def of(cls, data: ImageData) -> "Labelled":
        """The labelled images of a data set; those without a label, as most of STL-10, are left out.

        Raises:
            ValueError: if there are no test images, or no labels.
        """
        if data.test is None:
            raise CannotScoreError(f"name={data.name!r} has no test images to score on")
        for name, split in (("training", data.train), ("test", data.test)):
            if split.labels is None or not bool((split.labels >= 0).any()):
                raise CannotScoreError(
                    f"name={data.name!r} has no labels of its {name} images, and every protocol needs them: give class "
                    "folders (imagefolder:PATH) or another data set"
                )
        if any(bool((split.labels < 0).any()) for split in (data.train, data.test) if split.labels is not None):
            data = data.sample()
        assert data.test is not None
        return cls(data.train, data.test, data.name, data.class_names, data.value_range)

    @property
    def train_labels(self) -> Int[Tensor, " n"]:
        """Class indices of train, on the CPU."""
        return labels_of("train", self.train).cpu()

    @property
    def test_labels(self) -> Int[Tensor, " m"]:
        """Class indices of test, on the CPU."""
        return labels_of("test", self.test).cpu()

    @property
    def num_classes(self) -> int:
        """One more than the highest label of train."""
        return int(self.train_labels.max()) + 1


def read_images(
    split: ImageSplit | FileSplit, index: Int[Tensor, " k"], *, chunk: int = CHUNK
) -> Iterator[UInt[Tensor, "c channels h w"]]:
    """Images at these places, so many at a time; one that is left out is an error, for labels would be out of step."""
    for places in torch.split(index, chunk):
        images = split.read(places)
        if len(images) != len(places):
            raise ValueError("corrupt='error' is needed here: an image left out would put labels out of step")
        yield images
