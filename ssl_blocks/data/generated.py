"""Small labelled data made by formulas: volumes, waves, and images of several channels; the same for everyone."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

NUM_TRAIN, NUM_TEST = 2000, 500
VOLUMES = ("ball", "cube", "cross", "shell", "rod")
WAVES = ("sine", "square", "triangle", "sawtooth", "chirp")
CELLS = ("in the nucleus", "around the nucleus", "at the membrane", "at one pole")

Made = tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]


def make_volumes(count: int, generator: torch.Generator) -> Made:
    """Solids of five shapes in 16 slices of 16x16 voxels, which are the channels: anywhere, of any size, in noise."""
    labels = torch.arange(count) % len(VOLUMES)
    axis = torch.linspace(-1, 1, 16)
    places = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)  # [16, 16, 16, 3]
    center = _uniform((count, 1, 1, 1, 3), -0.4, 0.4, generator)
    radius = _uniform((count, 1, 1, 1, 1), 0.35, 0.55, generator)
    ways = F.one_hot(torch.randint(3, (count,), generator=generator), 3)[:, None, None, None]  # in which a rod lies
    images = torch.empty(count, 16, 16, 16)
    for number, name in enumerate(VOLUMES):
        own = labels == number
        images[own] = _solid(name, ((places - center[own]) / radius[own]).abs(), ways[own]).float()
    return _noisy(0.2 + 0.6 * images, 0.1, generator), labels


def make_waves(count: int, generator: torch.Generator) -> Made:
    """Waves of five shapes, 256 samples long, as images of one row: of any frequency, phase and amplitude, in noise."""
    labels = torch.arange(count) % len(WAVES)
    time = torch.linspace(0, 1, 256)
    cycles, phase = (_uniform((count, 1), low, high, generator) for low, high in ((3.0, 8.0), (0.0, 1.0)))
    turns = cycles * time + phase
    x = turns % 1
    faster = torch.sin(2 * math.pi * (turns + cycles * time.square()))
    shapes = torch.stack([torch.sin(2 * math.pi * x), (x - 0.5).sign(), 4 * (x - 0.5).abs() - 1, 2 * x - 1, faster])
    wave = shapes[labels, torch.arange(count)] * _uniform((count, 1), 0.5, 1.0, generator)
    return _noisy(0.5 + 0.35 * wave[:, None, None], 0.05, generator), labels


def make_cells(count: int, generator: torch.Generator) -> Made:
    """Cells of 32x32 pixels in four channels: nucleus, membrane, spots and a stain that says nothing.

    Where the spots lie is the class; it takes two channels to tell.
    """
    labels = torch.arange(count) % len(CELLS)
    axis = torch.linspace(-1, 1, 32)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)  # [32, 32, 2]
    center = _uniform((count, 1, 1, 2), -0.2, 0.2, generator)
    size = _uniform((count, 1, 1), 0.55, 0.75, generator)
    away = (places - center).square().sum(-1).sqrt() / size
    nucleus, membrane = torch.sigmoid(30 * (0.45 - away)), torch.exp(-((away - 1) ** 2) / 0.01)
    angle = _uniform((count, 6), 0.0, 2 * math.pi, generator)
    pole = labels[:, None] == 3
    angle = torch.where(pole, angle[:, :1] + 0.1 * (angle - math.pi), angle)
    reach = torch.stack([torch.full((6,), r) for r in (0.25, 0.7, 1.0, 0.7)])[labels] * size[:, :, 0]
    spot = center + torch.stack([reach * angle.sin(), reach * angle.cos()], -1)[:, :, None]  # [n, 6, 1, 2]
    rows, columns = ((axis - spot[..., side]).square() for side in (0, 1))  # [n, 6, 32]
    near = (rows[..., None] + columns[:, :, None]).amin(1)  # [n, 32, 32]
    spots = torch.exp(-near / 0.008)
    stain = _uniform((count, 1, 1), 0.0, 1.0, generator).expand(-1, 32, 32)
    return _noisy(0.1 + 0.7 * torch.stack([nucleus, membrane, spots, stain], dim=1), 0.08, generator), labels


def _solid(name: str, away: Float[Tensor, "n z y x 3"], way: Int[Tensor, "n 1 1 1 3"]) -> Bool[Tensor, "n z y x"]:
    """Which voxels lie inside; ``away``: how far from the centre along each axis, in radii."""
    far, most = away.square().sum(-1).sqrt(), away.amax(-1)
    if name == "ball":
        return far < 1
    if name == "cube":
        return most < 0.8
    if name == "cross":
        return ((away < 0.35).sum(-1) >= 2) & (most < 1)
    if name == "shell":
        return (far < 1) & (far > 0.65)
    on = (away * way).sum(-1)
    return (far.square() - on.square() < 0.2) & (on < 1.3)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _noisy(images: Float[Tensor, "n c h w"], noise: float, generator: torch.Generator) -> UInt8[Tensor, "n c h w"]:
    noisy = images + noise * torch.randn(images.shape, generator=generator)
    return noisy.clamp(0, 1).mul(255).round().to(torch.uint8)


GENERATED: dict[str, tuple[Callable[[int, torch.Generator], Made], tuple[str, ...], tuple[int, int, int]]] = {
    "volumes": (make_volumes, VOLUMES, (16, 16, 16)),
    "waves": (make_waves, WAVES, (1, 1, 256)),
    "cells": (make_cells, CELLS, (4, 32, 32)),
}
