"""The machine: versions, rates, and what each attention kernel costs."""

import os
import sys
from functools import partial
from importlib.metadata import version
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from examples.benchmarks.gpu_stages.items import Stage
from examples.benchmarks.gpu_stages.kernels import ATTENTION, attention
from examples.benchmarks.measure import machine, matmul_rate, milliseconds

# images, heads, tokens, width of a head: RandSAC ViT-T, MAE's class token and quarter, ViT-B, MAE's decoder
SHAPES = (
    (512, 3, 60, 64),
    (512, 3, 64, 64),
    (128, 12, 135, 64),
    (128, 12, 144, 64),
    (128, 12, 50, 64),
    (128, 16, 197, 32),
)


def run(stage: Stage) -> None:
    """Measure."""
    device = torch.device(stage.device)
    side = 128 if stage.tiny else 8192 if stage.cuda else 1024
    stage.run("versions", lambda: versions(device))
    stage.run("bf16 matmul, random data", lambda: {"tflops": matmul_rate(device, torch.bfloat16, side=side) / 1e12})
    stage.run("copy, bytes read and written", lambda: copy_rate(device))
    if not stage.cuda and not stage.tiny:
        return
    for shape in ((2, 3, 60, 32),) if stage.tiny else SHAPES:
        for kind in ("none", "shared", "per image"):
            stage.run(f"attention {'x'.join(map(str, shape))}, mask {kind}", partial(kernels, shape, kind, device))


def versions(device: torch.device) -> dict[str, Any]:
    """What is installed; nothing of it is loaded."""
    found = {name: version(name) for name in ("torch", "timm", "pytorch_lightning")}
    more: dict[str, Any] = {}
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        more = {"cudnn": torch.backends.cudnn.version(), "memory_gib": memory}  # type: ignore[no-untyped-call]
    python = sys.version.split()[0]
    return {"machine": machine(device), "cores": os.cpu_count(), "python": python, **found, **more}


def copy_rate(device: torch.device) -> dict[str, float]:
    """Bytes read and written in copying a large tensor."""
    source = torch.empty(1 << (30 if device.type == "cuda" else 24), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    ms = milliseconds(lambda: target.copy_(source), device, seconds=0.3)["ms"]
    return {"gb_per_s": 2 * source.numel() / ms / 1e6}


def kernels(shape: tuple[int, int, int, int], kind: str, device: torch.device) -> dict[str, Any]:
    """Forward and backward by each kernel; which one torch would take, and why a kernel will not."""
    batch, _, tokens, _ = shape
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    masks = {"none": None, "shared": causal[None, None], "per image": causal.expand(batch, 1, -1, -1).contiguous()}
    mask = masks[kind]

    def both() -> None:
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask).backward(q)  # type: ignore[no-untyped-call]

    found: dict[str, Any] = {}
    if device.type == "cuda":
        names = {int(cast(Any, member)): name for name, member in SDPBackend.__members__.items()}
        choice = int(torch._fused_sdp_choice(q, k, v, mask, 0.0, False))
        found["default"] = names.get(choice, str(choice))
    for name in ATTENTION if device.type == "cuda" else ("MATH",):
        short = name.split("_")[0].lower()
        try:
            with attention(name):
                both()
                found[f"{short}_ms"] = milliseconds(both, device, seconds=0.02, least=3)["ms"]
        except RuntimeError as error:
            found[short] = f"no: {str(error).splitlines()[0][:50]}"
    return found
