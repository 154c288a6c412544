"""Every kind of objective, small: an 8x8 grid. And what it takes to compare two passes of one."""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

import ssl_blocks as sb

IMAGE, PATCH, DIM, HEADS = 32, 4, 96, 3
_head = partial(sb.dino_head, hidden_dim=64, bottleneck_dim=32)


def _vit(depth: int = 3, **options: Any) -> sb.encoders.TimmViT:
    sizes = {"image_size": IMAGE, "patch_size": PATCH, "embed_dim": DIM, "num_heads": HEADS} | options
    return sb.encoders.timm_vit(depth=depth, **sizes)


def _tokenizer() -> sb.PatchTokenizer:
    return sb.PatchTokenizer(image_size=IMAGE, patch_size=PATCH)


def _randsac(partitioner: sb.parts.SegmentPartitioner, *, class_token: bool = False) -> sb.SegmentPrediction:
    encoder = _vit(class_token=class_token)
    return sb.randsac(
        encoder=encoder,
        tokenizer=_tokenizer(),
        partitioner=partitioner,
        decoder=sb.SegmentDecoder(grid=encoder.grid, dim=DIM, depth=2, num_heads=HEADS),
        predict_first=class_token,
    )


def _two_streams(partitioner: sb.parts.SegmentPartitioner) -> sb.SegmentPrediction:
    encoder, tokenizer = _vit(), _tokenizer()
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=partitioner,
        reader=sb.QueryReader(encoder.dim),
        target=sb.PixelTarget(tokenizer, normalize=True),
    )


def _mae() -> sb.SegmentPrediction:
    encoder = _vit(class_token=True)
    decoder = sb.MaskTokenDecoder(grid=encoder.grid, dim=48, depth=2, num_heads=HEADS, memory_dim=DIM)
    return sb.mae(encoder=encoder, tokenizer=_tokenizer(), decoder=decoder)


def _saim() -> sb.SegmentPrediction:
    encoder = _vit(depth=4, class_token=True)
    decoder = sb.QueryStreamDecoder(grid=encoder.grid, dim=DIM, depth=2, num_heads=HEADS, norm=encoder.norm)
    return sb.saim(encoder=encoder, tokenizer=_tokenizer(), decoder=decoder)


def _puzzle(*, original: bool) -> sb.PatchPuzzle:
    encoder: sb.encoders.TokenEncoder = (
        sb.encoders.PostNormTransformer(grid=4, patch=6, depth=2, num_heads=12)
        if original
        else _vit(depth=2, image_size=24, patch_size=6, positions="none")
    )
    tokenizer = sb.PatchTokenizer.from_grid(image_size=IMAGE, grid=4, crop=2)
    return sb.PatchPuzzle(encoder=encoder, tokenizer=tokenizer, patch_dropout=0.1)


def _esvit() -> sb.ViewRegionDistillation:
    stages: dict[str, Any] = {"window_size": 4, "embed_dim": 48, "depths": (1, 1), "num_heads": (3, 6)}
    encoder = sb.encoders.timm_regions(image_size=IMAGE, patch_size=PATCH, drop_path_rate=0.0, **stages)
    return sb.ViewRegionDistillation(encoder=encoder, out_dim=256, head=_head, region_weight=0.5)


def _dino(encoder: sb.encoders.TimmViT | None = None) -> sb.ViewRegionDistillation:
    regions = sb.encoders.TokenRegions(_vit(depth=2, class_token=True) if encoder is None else encoder)
    return sb.ViewRegionDistillation(encoder=regions, out_dim=256, head=_head, region_weight=0.0)


def _combined() -> sb.WeightedSum:
    base = _randsac(sb.SquarePartitioner(sides=(2,)), class_token=True)
    assert isinstance(base.encoder, sb.encoders.TimmViT)
    return sb.WeightedSum({"randsac": base, "dino": _dino(base.encoder)}, weights={"randsac": 1.0, "dino": 0.1})


KINDS: dict[str, Callable[[], sb.Objective]] = {
    "squares": lambda: _randsac(sb.SquarePartitioner(sides=(2, 4))),
    "blobs": lambda: _randsac(sb.BlobPartitioner(counts=(7, 3))),
    "mae": _mae,
    "esvit": _esvit,
    "saim": _saim,
    "apl": lambda: _puzzle(original=True),
    "two streams, blobs": lambda: _two_streams(sb.BlobPartitioner(counts=(7, 3))),
    "two streams": lambda: _two_streams(sb.SquarePartitioner(sides=(2,))),
    "class token, first": lambda: _randsac(sb.SquarePartitioner(sides=(4,)), class_token=True),
    "simmim": lambda: sb.simmim(encoder=_vit(class_token=True), tokenizer=_tokenizer()),
    "dino": _dino,
    "combined": _combined,
    "apl, timm": lambda: _puzzle(original=False),
}


def images_for(objective: sb.Objective, batch: int, *, seed: int = 1) -> Tensor | sb.Views:
    """Noise on CPU, as images or as two large and two small views."""
    generator = torch.Generator().manual_seed(seed)
    sides = (IMAGE, IMAGE, IMAGE // 2, IMAGE // 2) if objective.takes_views else (IMAGE,)
    views = tuple(torch.randn(batch, 3, side, side, generator=generator) for side in sides)
    return sb.Views(views, num_global=2) if objective.takes_views else views[0]


def moved(value: Any, device: str) -> Any:
    """Images, views or a draw, whatever it consists of, on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = {field.name: moved(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **inner)
    if isinstance(value, dict):
        return {name: moved(inner, device) for name, inner in value.items()}
    return tuple(moved(inner, device) for inner in value) if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class Pass:
    """What forward and backward left: the loss, and gradients by name in single precision on CPU."""

    loss: float
    gradients: dict[str, Tensor]


def run_pass(
    objective: sb.Objective,
    images: Any,
    draw: Any,
    *,
    dtype: torch.dtype | None = None,
    forward: Callable[..., sb.ObjectiveOutput] | None = None,
) -> Pass:
    """Forward and backward.

    Args:
        objective: whose gradients are read.
        images: on its device.
        draw: the random choices, on its device.
        dtype: of autocast; ``None``: none.
        forward: what to call, such as the compiled objective; ``None``: the objective.
    """
    objective.zero_grad(set_to_none=True)
    device = next(objective.parameters()).device.type
    with nullcontext() if dtype is None else torch.autocast(device, dtype):
        loss = (objective if forward is None else forward)(images, draw).loss
    loss.backward()
    gradients = {n: p.grad.detach().float().cpu() for n, p in objective.named_parameters() if p.grad is not None}
    return Pass(loss.item(), gradients)


def distance(found: Pass, expected: Pass) -> dict[str, Any]:
    """Relative distances of the loss, of all gradients together, and of the worst that is not tiny.

    Infinite where not the same parameters have gradients.
    """
    missing = sorted(found.gradients.keys() ^ expected.gradients.keys())
    if missing:
        return {"loss": float("inf"), "grad": float("inf"), "missing": missing[:3]}
    pairs = {name: (found.gradients[name], wanted) for name, wanted in expected.gradients.items()}
    total = float(torch.stack([wanted.norm() for _, wanted in pairs.values()]).norm())
    off = float(torch.stack([(got - wanted).norm() for got, wanted in pairs.values()]).norm())
    floor = 1e-3 * total / len(pairs) ** 0.5
    far = {
        n: float((got - wanted).norm() / wanted.norm()) for n, (got, wanted) in pairs.items() if wanted.norm() > floor
    }
    worst = max(far, key=lambda name: far[name], default="")
    loss = abs(found.loss - expected.loss) / max(abs(expected.loss), 1e-12)
    return {"loss": loss, "grad": off / total, "worst": far.get(worst, 0.0), "of": worst[-40:]}
