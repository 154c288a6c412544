"""RandSAC on ``nn.Transformer``, written after the paper's pseudocode: the oracle of tests, the rival of benchmarks.

It shares no code with the library. Squares of ``side`` x ``side`` tokens only, as in the paper.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssl_blocks.values import Serialization

Read = Callable[[Tensor], Tensor]


class PseudocodeRandSAC(nn.Module):
    """Masked transformer with learned skip connections over randomly ordered squares.

    Args:
        image_size, patch_size, channels: of the images, in pixels.
        side: side of a square segment in tokens, the paper's M.
        dim, num_heads, encoder_depth, decoder_depth: of the transformer; its feed-forward is 4 times as wide.
        positions: a learned table, or the fixed one that ``load_from`` fills in. Encoder and decoder share it.
        normalize: whether each target patch is normalised.
        eps: of the layer norms.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        side: int,
        dim: int,
        num_heads: int,
        encoder_depth: int,
        decoder_depth: int,
        channels: int = 3,
        positions: Literal["learned", "fixed"] = "learned",
        normalize: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.patch_size, self.side, self.normalize = patch_size, side, normalize
        self.width = image_size // patch_size // side  # in segments
        patch_dim = channels * patch_size**2
        table = torch.randn((image_size // patch_size) ** 2, dim) * 0.02
        self.positions = nn.Parameter(table, requires_grad=positions == "learned")
        self.embed = nn.Linear(patch_dim, dim)
        layer: dict[str, Any] = {
            "d_model": dim,
            "nhead": num_heads,
            "dim_feedforward": 4 * dim,
            "dropout": 0.0,
            "activation": "gelu",
            "layer_norm_eps": eps,
            "batch_first": True,
            "norm_first": True,
        }
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**layer),
            encoder_depth,
            norm=nn.LayerNorm(dim, eps=eps),
            enable_nested_tensor=False,  # it cannot be used with norm_first, and says so
        )
        self.transformer = nn.Transformer(custom_encoder=encoder, num_decoder_layers=decoder_depth, **layer)
        self.skip = nn.Linear(encoder_depth, decoder_depth)
        self.head = nn.Linear(dim, patch_dim)
        num_steps = self.width**2 - 1
        allowed = torch.ones(num_steps, num_steps).tril().repeat_interleave(side**2, 0).repeat_interleave(side**2, 1)
        self.register_buffer("blocked", allowed == 0, persistent=False)  # True = may NOT attend

    def forward(self, images: Tensor, segment_order: Tensor) -> tuple[Tensor, Tensor]:
        """Predict all segments but the first.

        Args:
            images: ``[B, C, H, W]``.
            segment_order: ``[B, K]``, the segments (numbered in raster order) as they are read.

        Returns:
            Loss, and predictions ``[B, (K-1) * side**2, P]`` in sequence order.
        """
        p = self.patch_size
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        patches = self.sort(patches, segment_order)
        positions = self.sort(self.positions.expand(len(images), -1, -1), segment_order)

        memories = self.encode(self.embed(patches[:, :-1].flatten(1, 2)) + positions[:, :-1].flatten(1, 2))
        x = positions[:, 1:].flatten(1, 2)
        decoder = self.transformer.decoder
        for layer, memory in zip(decoder.layers, memories, strict=True):
            x = layer(x, memory, tgt_mask=self.blocked, memory_mask=self.blocked)
        predictions = self.head(decoder.norm(x))

        target = patches[:, 1:].flatten(1, 2)
        if self.normalize:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return F.mse_loss(predictions.to(target.dtype), target), predictions

    def sort(self, tokens: Tensor, segment_order: Tensor) -> Tensor:
        """Cut raster tokens ``[B, N, D]`` into squares, and put these in order: ``[B, K, side**2, D]``."""
        segments = rearrange(
            tokens, "b (h m w n) d -> b (h w) (m n) d", h=self.width, w=self.width, m=self.side, n=self.side
        )
        return segments[torch.arange(len(tokens), device=tokens.device)[:, None], segment_order]

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the encoder layer by layer, and mix its layers into one memory per decoder layer."""
        encoder = self.transformer.encoder
        hidden = []
        for layer in encoder.layers:
            x = layer(x, src_mask=self.blocked)
            hidden.append(x)
        stack = encoder.norm(torch.stack(hidden, dim=-2))  # [B, n, L_enc, D]
        mixed: tuple[Tensor, ...] = self.skip(stack.transpose(-1, -2)).unbind(-1)
        return mixed

    def load_from(self, objective: nn.Module) -> None:
        """Take the weights of a ``SegmentPrediction`` (timm encoder, learned skips, ``SegmentDecoder``)."""
        self.load_state_dict(translate(objective))


def segment_order(draw: Serialization, *, side: int, grid_width: int) -> Tensor:
    """The order of squares ``[B, K]`` that a draw stands for."""
    first = draw.order[:, :: side**2]  # one position of every segment
    return first // grid_width // side * (grid_width // side) + first % grid_width // side


def translate(objective: Any, read: Read = torch.Tensor.detach) -> dict[str, Tensor]:
    """Rearrange a ``SegmentPrediction``'s parameters into the twin's names and layouts.

    Args:
        objective: its encoder is a timm vision transformer.
        read: what to take of each parameter: its value, or (``lambda p: p.grad``) its gradient.
    """
    vit, decoder = objective.encoder.module, objective.reader.decoder
    out = {
        "positions": read(vit.pos_embed)[0],
        "embed.weight": rearrange(read(vit.patch_embed.proj.weight), "d c p q -> d (p q c)"),
        "embed.bias": read(vit.patch_embed.proj.bias),
        **_named("skip", objective.reader.router.mix, read),
        **_named("head", objective.head, read),
        **_named("transformer.encoder.norm", vit.norm, read),
        **_named("transformer.decoder.norm", decoder.norm, read),
    }
    for i, block in enumerate(vit.blocks):
        layer = f"transformer.encoder.layers.{i}"
        out |= _attention(f"{layer}.self_attn", [block.attn.qkv], block.attn.proj, read)
        for ours, theirs in (("norm1", block.norm1), ("norm2", block.norm2)):
            out |= _named(f"{layer}.{ours}", theirs, read)
        out |= _mlp(layer, block.mlp, read)
    for i, block in enumerate(decoder.layers):
        layer = f"transformer.decoder.layers.{i}"
        cross = block.cross_attn
        out |= _attention(f"{layer}.self_attn", [block.self_attn.qkv], block.self_attn.proj, read)
        out |= _attention(f"{layer}.multihead_attn", [cross.query, cross.memory], cross.proj, read)
        for ours, theirs in (("norm1", block.norm1), ("norm2", block.norm2), ("norm3", block.norm3)):
            out |= _named(f"{layer}.{ours}", theirs, read)
        out |= _mlp(layer, block.mlp, read)
    return out


def _named(name: str, module: nn.Module, read: Read) -> dict[str, Tensor]:
    return {f"{name}.{key}": read(value) for key, value in module.named_parameters()}


def _attention(name: str, inputs: list[Any], proj: nn.Module, read: Read) -> dict[str, Tensor]:
    return {
        f"{name}.in_proj_weight": torch.cat([read(part.weight) for part in inputs]),
        f"{name}.in_proj_bias": torch.cat([read(part.bias) for part in inputs]),
        **_named(f"{name}.out_proj", proj, read),
    }


def _mlp(layer: str, mlp: Any, read: Read) -> dict[str, Tensor]:
    return {**_named(f"{layer}.linear1", mlp.fc1, read), **_named(f"{layer}.linear2", mlp.fc2, read)}
