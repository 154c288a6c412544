"""Frequencies of patches as targets."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ssl_blocks.parts.tokenize import Tokenizer


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


class DCTTarget:
    """Predict the lowest frequencies of each patch: its two-dimensional discrete cosine transform, as in JPEG.

    Coefficients whose frequencies add up to less than ``lowest`` are kept, channel by channel. All of them hold what
    the pixels hold, since the transform is orthonormal.

    Args:
        tokenizer: cuts the images.
        lowest: sums of the two frequencies that are kept lie below this; ``None``: all.

    Raises:
        ValueError: if nothing would be kept.

    Examples:
        >>> from ssl_blocks import PatchTokenizer
        >>> target = DCTTarget(PatchTokenizer(image_size=8, patch_size=4), lowest=3)
        >>> images = torch.rand(2, 3, 8, 8)
        >>> target(images).shape, target.to_pixels(target(images), images).shape  # 6 frequencies of 3 channels
        (torch.Size([2, 4, 18]), torch.Size([2, 3, 8, 8]))
    """

    def __init__(self, tokenizer: Tokenizer, *, lowest: int | None = None) -> None:
        height, width = tokenizer.patch
        sums = [(y + x, y * width + x) for y in range(height) for x in range(width)]
        kept = [place for total, place in sums if lowest is None or total < lowest]
        if not kept:
            raise ValueError(f"lowest={lowest} must be at least 1, so that a frequency is kept")
        self.tokenizer, self.dim = tokenizer, tokenizer.channels * len(kept)
        basis = torch.kron(*(dct_matrix(size).cpu() for size in tokenizer.patch))  # [frequencies, pixels of a patch]
        self._basis = basis[kept].tolist()  # plain numbers: no device to follow

    def _matrix(self, like: Tensor) -> Float[Tensor, "k p"]:
        return torch.tensor(self._basis, dtype=like.dtype, device=like.device)

    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n p"]:
        """Return coefficients ``[B, N, C * k]`` of images ``[B, C, H, W]``."""
        return (self.tokenizer(images).flatten(3) @ self._matrix(images).T).flatten(2)

    def to_pixels(
        self, predictions: Float[Tensor, "b n p"], images: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Put together what the kept frequencies show; others count as 0."""
        channels, (height, width) = self.tokenizer.channels, self.tokenizer.patch
        values = rearrange(predictions, "b n (c k) -> b n c k", c=channels) @ self._matrix(predictions)
        return self.tokenizer.untokenize(rearrange(values, "b n c (p q) -> b n c p q", p=height, q=width))
