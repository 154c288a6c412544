"""Tiny objectives for tests: everything small, every choice an option."""

from typing import Any

import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.data import ImageData, ImageSplit

DIM = 16


def build(
    partitioner: sb.parts.SegmentPartitioner,
    *,
    image_size: int = 16,
    patch_size: int = 2,
    channels: int = 3,
    crop: int = 0,
    dim: int = DIM,
    num_heads: int = 2,
    depth: int = 3,
    decoder_depth: int = 2,
    decoder_dim: int | None = None,
    normalize: bool = False,
    skips: bool = True,
    positions: str = "sincos",
    decoder_positions: str = "sincos",
    class_token: bool = False,
    reg_tokens: int = 0,
    serializer: sb.parts.Serializer | None = None,
    mask: sb.parts.MaskBuilder | None = None,
    head: nn.Module | None = None,
    predict_first: bool = False,
    seed: int = 0,
) -> sb.SegmentPrediction:
    """Build a segment autoregression: an 8x8 grid of 2x2 patches unless told otherwise.

    ``decoder_positions="shared"`` gives the decoder the encoder's own table.
    """
    torch.manual_seed(seed)
    tokenizer = sb.PatchTokenizer(image_size=image_size, patch_size=patch_size, channels=channels, crop=crop)
    encoder = sb.encoders.timm_vit(
        image_size=(tokenizer.grid.height * tokenizer.patch[0], tokenizer.grid.width * tokenizer.patch[1]),
        patch_size=tokenizer.patch,
        channels=channels,
        positions=positions,  # type: ignore[arg-type]
        class_token=class_token,
        reg_tokens=reg_tokens,
        embed_dim=dim,
        depth=depth,
        num_heads=num_heads,
    )
    shared = decoder_positions == "shared"
    table = sb.parts.PositionTable(encoder.module.pos_embed, num_prefix=encoder.num_prefix) if shared else None
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=partitioner,
        target=sb.PixelTarget(tokenizer, normalize=normalize),
        reader=sb.DecoderReader(
            sb.LearnedSkipRouter(encoder_depth=depth, decoder_depth=decoder_depth)
            if skips
            else sb.LastLayerRouter(decoder_depth=decoder_depth),
            sb.SegmentDecoder(
                grid=encoder.grid,
                dim=dim if decoder_dim is None else decoder_dim,
                memory_dim=dim,
                depth=decoder_depth,
                num_heads=num_heads,
                positions=table if table is not None else decoder_positions,  # type: ignore[arg-type]
            ),
        ),
        serializer=serializer,
        mask=mask,
        head=head,
        predict_first=predict_first,
    )


def blank(batch: int, device: str = "cpu") -> torch.Tensor:
    """So many images, for what reads their number and device alone."""
    return torch.zeros(batch, 1, 1, 1, device=device)


def images(batch: int = 3, size: int = 16, *, channels: int = 3, seed: int = 1, **options: Any) -> torch.Tensor:
    """Plain noise ``[B, C, size, size]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size, size, generator=generator).to(**options)


def gradients(
    objective: nn.Module, batch: torch.Tensor, draw: Any = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and the gradient of every trained parameter, which must have one."""
    objective.zero_grad()
    loss = objective(batch, draw).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    missing = {name for name, p in objective.named_parameters() if p.requires_grad} - set(found)
    assert not missing, f"no gradient reaches {sorted(missing)}"
    return loss.detach(), found


def some_data(num: int = 40) -> ImageData:
    """Noise with labels, 3x16x16."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.arange(num) % 4
    split = ImageSplit(images=images, labels=labels)
    return ImageData(
        name="noise",
        train=split,
        test=ImageSplit(images=images[:8], labels=labels[:8]),
        class_names=("a", "b", "c", "d"),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
