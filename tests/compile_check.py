"""Compile objectives, encoders and draws in one graph, and print what came of it as JSON.

Run by the fixture ``compiled``. A process of its own: shape checks on every call are no part of what is compiled.
Tracing costs about as much as there are blocks, so there are as few as show their wiring.
"""

import gc
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._dynamo.utils

import ssl_blocks as sb
from ssl_blocks.data import MultiCrop, RandomResizedCropFlip
from ssl_blocks.noise import Pure
from ssl_blocks.testing.role_case import same
from tests.encoders.compile_check import encoders
from tests.gallery.compile_check import methods
from tests.recipes import build, images

SMALL: dict[str, Any] = {"depth": 1, "decoder_depth": 1}
CASES: dict[str, tuple[sb.parts.SegmentPartitioner, dict[str, Any]]] = {
    "plain decoder, shared positions": (
        sb.SquarePartitioner(sides=(2, 4)),
        {"normalize": True, "skips": False, "positions": "learned", "decoder_positions": "shared"},
    ),
    "squares": (sb.SquarePartitioner(sides=(4,)), {"class_token": True, "predict_first": True}),
    "blobs": (sb.BlobPartitioner(counts=(7, 3)), {"class_token": True, "reg_tokens": 2, "depth": 2}),
}


def masked() -> sb.SegmentPrediction:
    """MAE, of the size of the others."""
    base = build(sb.SquarePartitioner(sides=(2,)), class_token=True, depth=1)
    decoder = sb.MaskTokenDecoder(grid=base.encoder.grid, dim=24, depth=1, num_heads=2, memory_dim=base.encoder.dim)
    return sb.mae(encoder=base.encoder, tokenizer=base.tokenizer, target=base.target, decoder=decoder)


def combined() -> sb.WeightedSum:
    """RandSAC and MAE on one encoder."""
    randsac, mae = build(sb.SquarePartitioner(sides=(2,)), class_token=True, depth=1, decoder_depth=1), masked()
    mae.encoder = randsac.encoder
    return sb.WeightedSum({"randsac": randsac, "mae": mae}, weights={"randsac": 1.0, "mae": 0.5})


def query_stream(*, share: bool) -> sb.SegmentPrediction:
    """SAIM, with weights of its own or shared ones."""
    base = build(sb.TokenPartitioner(), class_token=True, depth=1)
    encoder, own = base.encoder, {"dim": base.encoder.dim, "depth": 1, "num_heads": 2, "norm": base.encoder.norm}
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=base.tokenizer,
        partitioner=base.partitioner,
        target=sb.PixelTarget(base.tokenizer, normalize=True, blur=(9, 1.0)),
        reader=sb.DecoderReader(
            sb.MatchedRouter(encoder_depth=1, decoder_depth=1),
            sb.QueryStreamDecoder.sharing(encoder, depth=1)
            if share
            else sb.QueryStreamDecoder(grid=encoder.grid, **own),
        ),
        predict_first=True,
    )


def two_stream() -> sb.SegmentPrediction:
    """Content and queries through one encoder."""
    base = build(sb.BlobPartitioner(counts=(7,)), class_token=True, depth=1)
    return sb.SegmentPrediction(
        encoder=base.encoder,
        reader=sb.QueryReader(base.encoder.dim),
        tokenizer=base.tokenizer,
        partitioner=base.partitioner,
        target=base.target,
    )


def puzzle() -> sb.PatchPuzzle:
    """A patch puzzle of 16-pixel images in 3x3 patches, by its own transformer."""
    torch.manual_seed(0)
    tokenizer = sb.PatchTokenizer.from_grid(image_size=16, grid=3, crop=1)
    encoder = sb.encoders.PostNormTransformer(grid=3, patch=4, depth=1, num_heads=4)
    return sb.PatchPuzzle(encoder=encoder, tokenizer=tokenizer, patch_dropout=0.3)


def views() -> sb.Views:
    """Two large crops and a small one."""
    return sb.Views((images(2), images(2, seed=2), images(2, 8, seed=3)), num_global=2)


def distillation() -> sb.ViewRegionDistillation:
    """EsViT over a map, with the notes for centres that a training step makes."""
    torch.manual_seed(0)
    size = {"patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": (2,), "num_heads": (1,)}
    encoder = sb.encoders.timm_regions(image_size=16, drop_path_rate=0.0, **size)
    del encoder.module.layers[0].blocks[0]  # the other one does all that it does, with windows shifted
    head = partial(sb.dino_head, hidden_dim=16, bottleneck_dim=8)
    return sb.ViewRegionDistillation(encoder=encoder, out_dim=24, head=head, region_weight=0.5, koleo_weight=0.1)


BUILT: dict[str, Callable[[], sb.Objective]] = {
    "masked": masked,
    "views and regions": distillation,
    "puzzle": puzzle,
    "query stream": lambda: query_stream(share=False),
    "query stream, shared weights": lambda: query_stream(share=True),
    "two streams": two_stream,
}


def run(objective: Any, forward: Any, draw: Any, *, autocast: bool) -> tuple[float, list[torch.Tensor]]:
    objective.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = forward(views() if objective.takes_views else images(2), draw).loss
    loss.backward()
    return loss.item(), [p.grad.clone() for p in objective.parameters() if p.grad is not None]


def check(name: str, *, autocast: bool = False, checkpointing: bool = False) -> dict[str, float]:
    """Differences between compiled and eager, relative to the largest gradient."""
    torch._dynamo.reset_code_caches()
    torch._dynamo.utils.counters.clear()
    objective = BUILT[name]() if name in BUILT else build(CASES[name][0], **(SMALL | CASES[name][1]))
    if checkpointing:
        objective.encoder.module.set_grad_checkpointing()
    draw = objective.draw(images(2), generator=torch.Generator().manual_seed(0))
    loss, gradients = run(objective, objective, draw, autocast=autocast)
    compiled = torch.compile(objective, fullgraph=True, backend="eager")
    compiled_loss, compiled_gradients = run(objective, compiled, draw, autocast=autocast)
    pairs = list(zip(gradients, compiled_gradients, strict=True))
    return {
        "loss": abs(loss - compiled_loss),
        "gradients": max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs),
        "parameters": len(pairs),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }


def objectives() -> dict[str, dict[str, float]]:
    """Every kind of decoder and of step, half of them under autocast, and two with checkpointing."""
    halved = ("masked", "puzzle", "query stream", "two streams")
    found = {name: check(name) for name in ("plain decoder, shared positions", *BUILT) if name not in halved}
    for name in halved:
        found[f"{name}, bf16"] = check(name, autocast=True)
    found["blobs, checkpointing"] = check("blobs", checkpointing=True)
    found["squares, checkpointing, bf16"] = check("squares", autocast=True, checkpointing=True)
    return found


def pure(function: Any, batch: torch.Tensor) -> dict[str, Any]:
    """What draws, compiled as a function of its noise."""
    torch._dynamo.reset_code_caches()
    torch._dynamo.utils.counters.clear()
    split = Pure(function)
    compiled = split.compile(fullgraph=True, backend="eager", dynamic=False)
    found = []
    for seed in range(2):
        ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
        noise = split.noise(batch, generator=ours)
        found.append(same(compiled(noise, batch), function(batch, generator=theirs)))
    return {
        "same": all(found),
        "draws": len(noise),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }


def pure_functions() -> dict[str, dict[str, Any]]:
    """Augmentations, and draws of objectives: partitioners, serializers, sums."""
    mean = std = (0.5, 0.5, 0.5)
    partitioners: dict[str, sb.parts.SegmentPartitioner] = {
        "blobs": sb.ShuffledPartitioner(base=sb.BlobPartitioner(counts=(7, 3))),
        "squares": sb.SquarePartitioner(sides=(2, 4)),
        "blocks": sb.BlockSubsetPartitioner(hidden=0.5),
        "superpixels": sb.parts.SuperpixelPartitioner(shape=2),
    }
    functions: dict[str, Any] = {
        "crop": RandomResizedCropFlip(8),
        "views": MultiCrop(8, 6, num_local=0, mean=mean, std=std),
        **{name: build(partitioner, depth=1).draw for name, partitioner in partitioners.items()},
        "sum": combined().draw,
    }
    return {name: pure(function, images(2)) for name, function in functions.items()}


def main() -> None:
    torch.set_num_threads(1)
    gc.disable()  # what tracing leaves behind is little, and to look for it takes long
    torch._dynamo.guards.profile_guard_manager = lambda *_: 0.0  # how quick guards are, is not asked
    found = {"objectives": objectives(), "encoders": encoders(), "gallery": methods(), "pure": pure_functions()}
    print(json.dumps(found))
