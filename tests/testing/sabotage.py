"""A tiny masked predictor as somebody else might write it, and ways to spoil it."""

import torch
from torch import nn

from ssl_blocks.testing import Predicted

N, C, P = 16, 2, 8  # a 4x4 grid of 2x2 patches with two channels


def cut(images):
    return images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)


def noise(batch=3, seed=0):
    return torch.randn(batch, C, 8, 8, generator=torch.Generator().manual_seed(seed))


def normalised(patches):
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


class Masked(nn.Module):
    """Mix what is given over tokens, and predict the rest; ``spoil(self, rows, patches, given)`` changes rows."""

    def __init__(self, spoil=None, *, num_given=6, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.mix, self.head = nn.Linear(P, P), nn.Linear(N, N), nn.Linear(P, P)
        self.branch = nn.Linear(P, P)
        self.drop, self.norm = nn.Dropout(0.3), nn.LayerNorm(P)
        self.gate = nn.Parameter(torch.zeros(()))
        self.register_buffer("valve", torch.zeros(()))
        self.spoil, self.num_given = spoil, num_given

    def see(self, patches, given):
        return self.embed(patches) * given[..., None]

    def rows(self, patches, given):
        hidden = self.mix(self.see(patches, given).transpose(1, 2)).transpose(1, 2)
        return self.head(self.drop(self.norm(hidden)))

    def draw(self, batch):
        return torch.rand(batch, N).argsort(1) < self.num_given

    def loss(self, rows, targets, is_target):
        return None

    def predict(self, images):
        patches = cut(images)
        given = self.draw(len(images)).to(images.device)
        rows = self.rows(patches, given)
        if self.spoil is not None:
            rows = self.spoil(self, rows, patches, given)
        index = torch.arange(N).expand(len(images), -1)
        targets = patches
        return Predicted(rows, targets, index, given=given, is_target=~given, loss=self.loss(rows, targets, ~given))


def first(given):
    """Whether the first position is hidden, per image."""
    return ~given[:, :1, None]


def other(x, by=1):
    return x.roll(by, 0)


# name: rows of a leaking model
SABOTAGES = {
    "own patch": lambda m, r, p, g: r + p,
    "own patch, 1e-7 of it": lambda m, r, p, g: r + 1e-7 * p,
    "own patch, without gradient": lambda m, r, p, g: r + 1e-3 * p.detach(),
    "own sign": lambda m, r, p, g: r + p.sign(),
    "own patch, rounded": lambda m, r, p, g: r + (4 * p).round(),
    "own mean": lambda m, r, p, g: r + p.mean(-1, keepdim=True),
    "the brightest value alone": lambda m, r, p, g: r + 1e-3 * p.amax(-1, keepdim=True),
    "one pixel of one patch": lambda m, r, p, g: r + torch.where(first(g), p[:, :1, :1], 0.0),
    "the neighbour to the right": lambda m, r, p, g: r + p.roll(-1, 1),
    "mean of the whole image": lambda m, r, p, g: r + p.mean((1, 2), keepdim=True),
    "deviation of the whole image": lambda m, r, p, g: r * p.std((1, 2), keepdim=True),
    "a zero branch": lambda m, r, p, g: r + m.gate * p,
    "a zero branch of one layer": lambda m, r, p, g: r + m.branch(p),
    "a gate in a buffer": lambda m, r, p, g: r + m.valve * p,
    "a product of two gates": lambda m, r, p, g: r + m.gate * m.gate * p,
    "training alone": lambda m, r, p, g: r + 1e-3 * p if m.training else r,
    "training alone, sign": lambda m, r, p, g: r + 1e-3 * p.sign() if m.training else r,
    "evaluation alone": lambda m, r, p, g: r if m.training else r + 1e-3 * p,
    "autocast alone": lambda m, r, p, g: r + 1e-2 * p if torch.is_autocast_enabled("cpu") else r,
    "autocast alone, faint": lambda m, r, p, g: r + 1e-3 * p if torch.is_autocast_enabled("cpu") else r,
    "single precision alone": lambda m, r, p, g: r + 1e-3 * p if p.dtype == torch.float32 else r,
    "without gradients alone": lambda m, r, p, g: r if torch.is_grad_enabled() else r + 1e-3 * p,
    "with gradients alone": lambda m, r, p, g: r + 1e-3 * p if torch.is_grad_enabled() else r,
    "one image of a batch": lambda m, r, p, g: r + 1e-3 * p * (torch.arange(len(p)) == 5)[:, None, None],
    "the last image": lambda m, r, p, g: r + 1e-3 * p * (torch.arange(len(p)) == len(p) - 1)[:, None, None],
    "large batches": lambda m, r, p, g: r + 1e-3 * p if len(p) > 100 else r,
    "batches of even size above 20": lambda m, r, p, g: r + 1e-3 * p if len(p) > 20 and len(p) % 2 == 0 else r,
    "a draw of 16": lambda m, r, p, g: r + torch.where(g[:, :1, None] & g[:, 1:2, None] & g[:, 2:3, None], p, 0.0),
    "a draw of 60": lambda m, r, p, g: r + torch.where(g[:, :4].all(1)[:, None, None], p, 0.0),
    "the image before": lambda m, r, p, g: r + 1e-3 * other(p),
    "the image across": lambda m, r, p, g: r + 1e-3 * p.flip(0),
    "the image across, sign": lambda m, r, p, g: r + 1e-3 * p.flip(0).sign(),
    "mean of the batch": lambda m, r, p, g: r - p.mean((0, 1)),
    "batch norm over what is given": lambda m, r, p, g: r / (m.see(p, g).std((0, 1)) + 1),
    "how many images": lambda m, r, p, g: r + 1e-2 * p[:, :1] * (len(p) > 7),
    "own patch of even positions": lambda m, r, p, g: r + p * (torch.arange(N) % 2)[:, None],
    "one position": lambda m, r, p, g: r + 1e-4 * p * (torch.arange(N) == 7)[:, None],
    "order of brightness": lambda m, r, p, g: r + 1e-3 * p.mean(-1).argsort(1)[..., None].to(r.dtype),
    "a hash": lambda m, r, p, g: r + 1e-3 * ((1e3 * p.sum(-1, keepdim=True)).floor() % 2),
    "own patch through attention": lambda m, r, p, g: r + 1e-3 * (r @ p.transpose(1, 2)).softmax(-1) @ p,
}
