"""What a training loop asks of an augmentation."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_blocks.values import Views

if TYPE_CHECKING:
    from ssl_blocks.data.augment import RandomResizedCropFlip


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
