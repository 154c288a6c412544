"""Crowds: images of several digits of one class, anywhere, in white or black; the same for everyone."""

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

NUM_TRAIN, NUM_TEST = 6000, 1000
SIDE, CELL = 32, 8  # pixels
CROWD, STRAY = 10, 1  # digits of an image, and by how many pixels each lies off its cell at most
GREY = 0.5


def make_crowds(
    digits: UInt8[Tensor, "m 1 8 8"], labels: Int[Tensor, " m"], count: int, generator: torch.Generator
) -> tuple[UInt8[Tensor, "n 1 32 32"], Int[Tensor, " n"]]:
    """Put ten different digits of one class on grey ground, each white or black, near cells of a 4x4 grid.

    Where two overlap, the one that differs more from the ground is seen.

    Args:
        digits: white on black, at least ten of each class.
        labels: their classes, 0..9.
        count: number of images, class after class.
        generator: draws digits, places and colours.

    Raises:
        ValueError: if a class has too few digits.
    """
    wanted = torch.arange(count) * 10 // count
    chosen = torch.empty(count, CROWD, dtype=torch.int64)
    for label in range(10):
        own = (labels == label).nonzero()[:, 0]
        if len(own) < CROWD:
            raise ValueError(f"labels must hold at least {CROWD} digits of each class, got {len(own)} of class {label}")
        ranks = torch.rand(int((wanted == label).sum()), len(own), generator=generator).argsort(1)[:, :CROWD]
        chosen[wanted == label] = own[ranks]
    per_row = SIDE // CELL
    cells = torch.rand(count, per_row**2, generator=generator).argsort(1)[:, :CROWD]
    strays = torch.randint(-STRAY, STRAY + 1, (2, count, CROWD), generator=generator)
    corners = torch.stack([cells // per_row, cells % per_row]) * CELL + strays
    down, right = corners.clamp(0, SIDE - CELL)[..., None] + torch.arange(CELL)  # [n, 10, 8] each
    signs = 1 - 2 * torch.randint(2, (count, CROWD, 1, 1), generator=generator)
    ink = torch.zeros(count, SIDE, SIDE)
    rows = torch.arange(count)[:, None, None]
    for number in range(CROWD):
        place = (rows, down[:, number, :, None], right[:, number, None])
        new = digits[chosen[:, number], 0] / 255 * signs[:, number]
        ink[place] = torch.where(new.abs() > ink[place].abs(), new, ink[place])
    return (GREY * (1 + ink))[:, None].mul(255).round().to(torch.uint8), wanted
