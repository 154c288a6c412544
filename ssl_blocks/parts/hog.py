"""Histograms of oriented gradients as targets."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_blocks.bounds import Count
from ssl_blocks.doors import checked
from ssl_blocks.parts.tokenize import Tokenizer, pair


@checked
class HOGTarget:
    """Predict how edges run in each patch: histograms of gradient directions (MaskFeat, Sec. 3.2).

    Differences of neighbouring pixels per channel, mirrored at the border; unsigned directions in ``bins`` classes,
    each pixel adding its gradient's length to one of them; histograms of square cells, brought to length 1 over all
    bins of a cell and channel. A patch holds the cells within it, cell by cell, channel by channel.

    Args:
        tokenizer: cuts the images; it must not crop.
        bins: classes of directions.
        cell: side of a cell in pixels; ``None``: one cell a patch.

    Raises:
        ValueError: if the cell does not divide the patch, the patch is no whole grid cell, or there are no bins.

    Examples:
        >>> from ssl_blocks import PatchTokenizer
        >>> target = HOGTarget(PatchTokenizer(image_size=8, patch_size=4), bins=9)
        >>> target(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 4, 27])
    """

    def __init__(self, tokenizer: Tokenizer, *, bins: Count = 9, cell: Count | None = None) -> None:
        height, width = pair(tokenizer.patch)
        self.tokenizer, self.bins, self.cell = tokenizer, bins, (height, width) if cell is None else (cell, cell)
        if min(self.cell) < 1 or height % self.cell[0] or width % self.cell[1]:
            raise ValueError(f"cell={cell} must divide the patch of {height}x{width} pixels")
        if getattr(tokenizer, "crop", 0):
            raise ValueError("tokenizer must not crop: gradients are taken over the whole image")
        self.dim = height // self.cell[0] * (width // self.cell[1]) * tokenizer.channels * bins

    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n p"]:
        """Return targets ``[B, N, cells * C * bins]`` of images ``[B, C, H, W]``."""
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        direction = torch.atan2(down, across) / math.pi % 1.0  # a half turn is the same direction
        which = (direction * self.bins).long().clamp(max=self.bins - 1)
        length = (across.square() + down.square()).sqrt()
        votes = F.one_hot(which, self.bins).to(images.dtype) * length[..., None]  # [B, C, H, W, bins]
        # the tokenizer knows the grid: every bin is cut as an image of its own
        cut = self.tokenizer(votes.movedim(-1, 1).flatten(0, 1))  # [B * bins, N, C, height, width]
        (height, width), (p, q) = cut.shape[3:], self.cell
        split = cut.reshape(len(images), self.bins, *cut.shape[1:3], height // p, p, width // q, q)
        cells = split.permute(0, 2, 4, 6, 3, 5, 7, 1).contiguous().flatten(5, 6).sum(-2)  # [B, N, y, x, C, bins]
        return F.normalize(cells, dim=-1, eps=1e-6).flatten(2)
