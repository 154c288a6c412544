"""Frequencies of patches as targets."""

import functools
import itertools
import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.bounds import Count
from ssl_blocks.doors import checked
from ssl_blocks.parts.tokenize import Images, Tokenizer


def dct_matrix(size: int) -> Float[Tensor, "n n"]:
    """The orthonormal discrete cosine transform of type II, ``[size, size]``, a row per frequency.

    Examples:
        >>> basis = dct_matrix(4)
        >>> torch.allclose(basis @ basis.T, torch.eye(4), atol=1e-6)
        True
    """
    place = torch.arange(size, dtype=torch.float64)
    table = (math.pi / size * (place + 0.5) * place[:, None]).cos() * math.sqrt(2 / size)
    table[0] /= math.sqrt(2)
    return table.to(torch.get_default_dtype())


@checked
class DCTTarget(nn.Module):
    """Predict the lowest frequencies of each patch: its discrete cosine transform along every axis, as in JPEG.

    Coefficients whose frequencies along the axes add up to less than ``lowest`` are kept, channel by channel. All of
    them hold what the pixels hold, since the transform is orthonormal.

    Args:
        tokenizer: cuts the images.
        lowest: sums of the frequencies of what is kept lie below this; ``None``: all.

    Raises:
        ValueError: if nothing would be kept.

    Examples:
        >>> from ssl_blocks import PatchTokenizer
        >>> target = DCTTarget(PatchTokenizer(image_size=8, patch_size=4), lowest=3)
        >>> images = torch.rand(2, 3, 8, 8)
        >>> target(images).shape, target.to_pixels(target(images), images).shape  # 6 frequencies of 3 channels
        (torch.Size([2, 4, 18]), torch.Size([2, 3, 8, 8]))
    """

    basis: Tensor

    def __init__(self, tokenizer: Tokenizer, *, lowest: Count | None = None) -> None:
        super().__init__()
        waves = itertools.product(*(range(size) for size in tokenizer.patch))
        kept = [place for place, wave in enumerate(waves) if lowest is None or sum(wave) < lowest]
        self.tokenizer, self.dim = tokenizer, tokenizer.channels * len(kept)
        basis = functools.reduce(torch.kron, map(dct_matrix, tokenizer.patch))  # [frequencies, pixels of a patch]
        self.register_buffer("basis", basis[kept], persistent=False)

    def forward(self, images: Images) -> Float[Tensor, "b n p"]:
        """Return coefficients ``[B, N, C * k]`` of images."""
        return (self.tokenizer(images).flatten(3) @ self.basis.to(images.dtype).T).flatten(2)

    def to_pixels(self, predictions: Float[Tensor, "b n p"], images: Images) -> Images:
        """Put together what the kept frequencies show; others count as 0."""
        values = rearrange(predictions, "b n (c k) -> b n c k", c=self.tokenizer.channels)
        values = values @ self.basis.to(predictions.dtype)
        return self.tokenizer.untokenize(values.reshape(*values.shape[:3], *self.tokenizer.patch))
