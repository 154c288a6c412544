"""What comes before the model: images of a batch, their augmentation, and the draws."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import ssl_blocks as sb
from examples.benchmarks.gpu_stages.items import Stage
from examples.benchmarks.gpu_stages.kernels import host_waits, profiled
from examples.benchmarks.measure import milliseconds
from ssl_blocks.data import MultiCrop, RandomResizedCropFlip, to_float

MEAN, STD = (0.5,) * 3, (0.25,) * 3


def run(stage: Stage) -> None:
    """Measure."""
    torch.manual_seed(0)
    device = torch.device(stage.device)
    batch, num_photos, side = (8, 2, 64) if stage.tiny else (512, 64, 224)
    pool = torch.randint(0, 256, (2000, 3, 32, 32), dtype=torch.uint8, device=device)
    photos = torch.randint(0, 256, (num_photos, 3, side, side), dtype=torch.uint8, device=device)
    index = torch.randint(len(pool), (batch,), device=device)
    generator = torch.Generator(device).manual_seed(0)
    crop, large = RandomResizedCropFlip(32), RandomResizedCropFlip(side)
    views = MultiCrop(side, side * 3 // 7, num_local=8, mean=MEAN, std=STD)
    in_order, at_random = sb.OrderedSerializer(), sb.RandomSerializer()
    blank = torch.zeros(batch, 1, 1, 1, device=device)  # partitioners read number and device alone

    def draw(partitioner: sb.parts.SegmentPartitioner, side: int, serializer: sb.parts.Serializer) -> sb.Serialization:
        return serializer(partitioner(blank, sb.Grid(side, side), generator=generator), generator=generator)

    work: dict[str, Callable[[], object]] = {
        f"pick {batch} of a pool, to float": lambda: to_float(pool[index], MEAN, STD),
        f"crop and flip, {batch} of 32 px": lambda: crop(to_float(pool[index], MEAN, STD), generator=generator),
        f"draw squares, batch {batch}": partial(draw, sb.SquarePartitioner(sides=(2, 4)), 8, at_random),
        f"draw blobs, batch {batch}": partial(draw, sb.BlobPartitioner(counts=(11, 5)), 8, at_random),
        f"draw MAE's subset of 14x14, batch {batch}": partial(draw, sb.SubsetPartitioner(hidden=0.75), 14, in_order),
        f"crop and flip, {num_photos} of {side} px": lambda: large(to_float(photos, MEAN, STD), generator=generator),
        f"2 + 8 views of {num_photos}, {side} px": lambda: views(to_float(photos, MEAN, STD), generator=generator),
    }
    for name, function in work.items():
        stage.run(name, partial(timed, function, device), needs=2, most=12)
    crop_alone = partial(compiled, lambda pool, index: crop(to_float(pool[index], MEAN, STD)), pool, index)
    backend = "eager" if stage.tiny else "inductor"
    name = f"crop and flip, {batch} of 32 px, compiled, torch's own generator"
    stage.run(name, lambda: crop_alone(backend=backend), needs=12, most=40)


def timed(function: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Time of a call; on a GPU also its kernels, and the lines in which the host waits."""
    for _ in range(2):
        function()
    found: dict[str, Any] = milliseconds(function, device, seconds=0.2)
    if device.type != "cuda":
        return found
    kernels, waits = profiled(function, device), host_waits(function)
    launches = {"launches": sum(number for _, number, _ in kernels), "gpu_ms": sum(ms for ms, _, _ in kernels)}
    return {**found, **launches, "num_waits": sum(waits.values()), "waits": waits}


def compiled(function: Callable[..., Tensor], *inputs: Tensor, backend: str) -> dict[str, Any]:
    """Time of a function once it is compiled; graphs may break."""
    torch.compiler.reset()
    run = torch.compile(function, dynamic=False, backend=backend)
    run(*inputs)
    return milliseconds(lambda: run(*inputs), inputs[0].device, seconds=0.2)
