"""What is asked of a source of images, and of an augmentation."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.values import Views

if TYPE_CHECKING:
    from ssl_blocks.data.augment import RandomResizedCropFlip
    from ssl_blocks.data.files import Raw


@runtime_checkable
class Items(Protocol):
    """Images by index, decoded or not."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> "Raw":
        """A path, the bytes of a file, a picture, an array ``[H, W]`` or ``[H, W, C]``, or a tensor ``[C, H, W]``."""
        ...


@runtime_checkable
class Source(Items, Protocol):
    """Images of one split by index, wherever they come from, with labels where there are any.

    An image is asked for whenever it is needed, by worker processes as well: a source is pickled or forked, and opens
    for itself in every process what cannot be shared.
    """

    @property
    def labels(self) -> Int[Tensor, " n"] | None:
        """Class indices ``[N]`` int64, -1 for an image without one; or ``None``."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label; empty where there are none."""
        ...


@runtime_checkable
class Augmentation(Protocol):
    """Varies a batch of normalised images on their device: one picture of each image, or several views of it."""

    def __call__(
        self, images: Float[Tensor, "b c h w"], /, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c p q"] | Views:
        """Augment whole images, such as those held in memory."""
        ...

    def file_crop(self, size: tuple[int, int], /) -> "RandomResizedCropFlip":
        """How images in files are cut while they are decoded; ``size``: height and width of images in memory."""
        ...

    def finish(
        self, images: Float[Tensor, "b c h w"], /, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c p q"] | Views:
        """Do what remains to be done with images that ``file_crop`` has cut."""
        ...
