"""Swin as its official code has it: names, shapes and the merging of patches at the end of a stage. Slow and plain."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.ParameterDict({"relative_position_bias_table": torch.zeros((2 * window - 1) ** 2, heads)})
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend token by token: ``[B, h, w, D]``."""
        _, height, width, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        size, out = q.shape[-1] // self.heads, torch.zeros_like(q)
        for y in range(height):
            for z in range(width):
                seen = self._seen(y, z, height, width)
                for head in range(self.heads):
                    part = slice(head * size, (head + 1) * size)
                    scores = (q[:, y, z, None, part] * torch.stack([k[:, a, b, part] for a, b in seen], 1)).sum(-1)
                    bias = [self._bias((y, z), other, head, (height, width)) for other in seen]
                    scores = scores * size**-0.5 + torch.stack(bias)
                    values = torch.stack([v[:, a, b, part] for a, b in seen], 1)
                    out[:, y, z, part] = (scores.softmax(-1)[..., None] * values).sum(1)
        x = x + self.proj(out)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def _rolled(self, y: int, z: int, height: int, width: int) -> tuple[int, int]:
        return (y - self.shift) % height, (z - self.shift) % width

    def _seen(self, y: int, z: int, height: int, width: int) -> list[tuple[int, int]]:
        """Tokens of the same window of the rolled map that do not come from its other side."""
        here, window = self._rolled(y, z, height, width), self.window
        return [
            (a, b)
            for a in range(height)
            for b in range(width)
            if all(
                mine // window == its // window and abs(mine - its) == abs(place - other)
                for mine, its, place, other in zip(here, self._rolled(a, b, height, width), (y, z), (a, b), strict=True)
            )
        ]

    def _bias(self, one: tuple[int, int], other: tuple[int, int], head: int, size: tuple[int, int]) -> Tensor:
        here, there = self._rolled(*one, *size), self._rolled(*other, *size)
        row = (here[0] - there[0] + self.window - 1) * (2 * self.window - 1) + here[1] - there[1] + self.window - 1
        return self.attn["relative_position_bias_table"][row, head]


class Swin(nn.Module):
    """Two stages of two blocks on a map of 8x8 tokens."""

    def __init__(self, dim: int = 8, window: int = 4) -> None:
        super().__init__()
        self.proj, self.embed_norm = nn.Conv2d(3, dim, 4, 4), nn.LayerNorm(dim)
        self.first = nn.ModuleList(Block(dim, 1, window, shift) for shift in (0, 2))
        self.merge_norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)
        self.second = nn.ModuleList(Block(2 * dim, 2, window, 0) for _ in range(2))
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised regions ``[B, 16, D]``."""
        x = self.embed_norm(self.proj(images).permute(0, 2, 3, 1))
        for block in self.first:
            x = block(x)
        corners = [x[:, y::2, z::2] for y, z in ((0, 0), (1, 0), (0, 1), (1, 1))]
        x = self.reduction(self.merge_norm(torch.cat(corners, -1)))
        for block in self.second:
            x = block(x)
        return self.norm(x).flatten(1, 2)

    def official(self) -> dict[str, Tensor]:
        """The weights under the official names, with what the code saves beside them."""
        begin = {
            "first.0.": "layers.0.blocks.0.",
            "first.1.": "layers.0.blocks.1.",
            "second.0.": "layers.1.blocks.0.",
            "second.1.": "layers.1.blocks.1.",
            "merge_norm.": "layers.0.downsample.norm.",
            "reduction.": "layers.0.downsample.reduction.",
            "embed_norm.": "patch_embed.norm.",
        }
        found = {}
        for name, value in self.state_dict().items():
            ours = next((part for part in begin if name.startswith(part)), "")
            rest = name.removeprefix(ours)
            for linear, parent in (("qkv.", "attn."), ("proj.", "attn."), ("fc", "mlp.")):
                rest = parent + rest if ours and rest.startswith(linear) else rest
            found[begin.get(ours, "patch_embed." if rest.startswith("proj.") else "") + rest] = value
        return found | {
            "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16).long(),
            "layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
        }
