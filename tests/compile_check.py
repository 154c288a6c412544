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

SMALL: dict[str, Any] = {"depth": 2, "decoder_depth": 1}
CASES: dict[str, tuple[sb.parts.SegmentPartitioner, dict[str, Any]]] = {
    "class token": (sb.SquarePartitioner(sides=(4,)), {"class_token": True, "predict_first": True}),
    "class token, blobs": (sb.BlobPartitioner(counts=(7, 3)), {"class_token": True, "reg_tokens": 2}),
    "plain decoder, shared positions": (
        sb.SquarePartitioner(sides=(2, 4)),
        {"normalize": True, "skips": False, "positions": "learned", "decoder_positions": "shared"},
    ),
    "squares": (sb.SquarePartitioner(sides=(2,)), {"decoder_depth": 2}),
    "blobs": (sb.BlobPartitioner(counts=(7,)), {"decoder_depth": 2}),
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
    base = build(sb.TokenPartitioner(), class_token=True, depth=2)
    encoder, own = base.encoder, {"dim": base.encoder.dim, "depth": 1, "num_heads": 2, "norm": base.encoder.norm}
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=base.tokenizer,
        partitioner=base.partitioner,
        target=sb.PixelTarget(base.tokenizer, normalize=True, blur=(9, 1.0)),
        reader=sb.DecoderReader(
            sb.MatchedRouter(encoder_depth=2, decoder_depth=1),
            sb.QueryStreamDecoder.sharing(encoder, depth=1)
            if share
            else sb.QueryStreamDecoder(grid=encoder.grid, **own),
        ),
        predict_first=True,
    )


def two_stream(partitioner: sb.parts.SegmentPartitioner) -> sb.SegmentPrediction:
    """Content and queries through one encoder."""
    base = build(partitioner, class_token=True, depth=2)
    return sb.SegmentPrediction(
        encoder=base.encoder,
        reader=sb.QueryReader(base.encoder.dim),
        tokenizer=base.tokenizer,
        partitioner=partitioner,
        target=base.target,
    )


def puzzle(*, original: bool) -> sb.PatchPuzzle:
    """A patch puzzle of 16-pixel images in 3x3 patches, by its own transformer or by timm's."""
    torch.manual_seed(0)
    tokenizer = sb.PatchTokenizer.from_grid(image_size=16, grid=3, crop=1)
    encoder: sb.encoders.TokenEncoder = (
        sb.encoders.PostNormTransformer(grid=3, patch=4, depth=2, num_heads=4)
        if original
        else sb.encoders.timm_vit(
            image_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2, positions="none", class_token=True
        )
    )
    return sb.PatchPuzzle(encoder=encoder, tokenizer=tokenizer, patch_dropout=0.3)


def views() -> sb.Views:
    """Two large crops and a small one."""
    return sb.Views((images(2), images(2, seed=2), images(2, 8, seed=3)), num_global=2)


def distillation(name: str) -> sb.ViewRegionDistillation:
    """EsViT over a map, DINO over tokens; with the notes for centres that a training step makes."""
    torch.manual_seed(0)
    encoder: sb.encoders.RegionEncoder
    if name == "views and regions":
        size = {"patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}
        encoder = sb.encoders.timm_regions(image_size=16, drop_path_rate=0.0, **size)
    else:
        base = build(sb.SquarePartitioner(sides=(2,)), class_token=True, depth=1)
        encoder = sb.encoders.TokenRegions(base.encoder)
    head = partial(sb.dino_head, hidden_dim=16, bottleneck_dim=8)
    return sb.ViewRegionDistillation(
        encoder=encoder,
        out_dim=24,
        head=head,
        region_weight=0.5 if name == "views and regions" else 0.0,
        koleo_weight=0.1,
    )


BUILT: dict[str, Callable[[], sb.Objective]] = {
    "masked": masked,
    "combined": combined,
    "views and regions": lambda: distillation("views and regions"),
    "views of tokens": lambda: distillation("views of tokens"),
    "puzzle": lambda: puzzle(original=False),
    "puzzle, its transformer": lambda: puzzle(original=True),
    "query stream": lambda: query_stream(share=False),
    "query stream, shared weights": lambda: query_stream(share=True),
    "two streams": lambda: two_stream(sb.SquarePartitioner(sides=(2,))),
    "two streams, blobs": lambda: two_stream(sb.BlobPartitioner(counts=(7,))),
}


def run(objective: Any, forward: Any, draw: Any, *, autocast: bool) -> tuple[float, list[torch.Tensor]]:
    objective.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = forward(views() if objective.takes_views else images(2), draw).loss
    loss.backward()
    return loss.item(), [p.grad.clone() for p in objective.parameters() if p.grad is not None]


def check(name: str, *, autocast: bool = False, checkpointing: bool = False) -> dict[str, float]:
    """Differences between compiled and eager, relative to the largest gradient."""
    torch.compiler.reset()
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
    """Every kind of decoder and of step, under autocast and in full precision, and two with checkpointing."""
    halved = ("masked", "query stream", "two streams, blobs", "puzzle, its transformer")
    recomputed = ("squares", "blobs")
    found = {name: check(name) for name in [*CASES, *BUILT] if name not in {*halved, *recomputed}}
    for name in halved:
        found[f"{name}, bf16"] = check(name, autocast=True)
    found["squares, checkpointing"] = check("squares", checkpointing=True)
    found["blobs, checkpointing, bf16"] = check("blobs", autocast=True, checkpointing=True)
    return found


def pure(function: Any, batch: torch.Tensor) -> dict[str, Any]:
    """What draws, compiled as a function of its noise."""
    torch.compiler.reset()
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
        "views": MultiCrop(8, 6, num_local=1, mean=mean, std=std),
        **{name: build(partitioner, depth=1).draw for name, partitioner in partitioners.items()},
        "sum": combined().draw,
    }
    return {name: pure(function, images(2)) for name, function in functions.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # what imports made is no garbage: no use in looking through it again and again
    found = {"objectives": objectives(), "encoders": encoders(), "gallery": methods(), "pure": pure_functions()}
    print(json.dumps(found))
