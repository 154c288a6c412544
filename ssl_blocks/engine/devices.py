"""Where to compute, and how precisely."""

from typing import Any

import torch


def choose_device(wanted: str, precision: str, *, section: str = "") -> tuple[str, torch.dtype | None]:
    """Resolve ``auto`` to what this machine has: device, and 16-bit type or ``None``.

    ``section`` is what stands before an option's name in errors, with a dot.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{section}device='cuda' needs a CUDA GPU, and there is none; use auto or cpu")
    device = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if _has_bf16(device) else "fp32"
    if precision == "bf16-pure" and device == "cuda" and not _has_bf16(device):
        raise ValueError(f"{section}precision='bf16-pure' needs a GPU that computes in bfloat16; use fp32")
    if precision == "tf32" and device != "cuda":
        raise ValueError(f"{section}precision='tf32' needs a CUDA GPU, and the device is the CPU; use fp32")
    return device, torch.bfloat16 if precision in ("bf16", "bf16-pure") else None


def _has_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = dict(torch.cpu.get_capabilities())
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
