"""One training step of RandSAC: this library against the paper's pseudocode on ``nn.Transformer``.

    python -m examples.benchmarks.speed --batch 32 --rounds 15

CIFAR size: ViT-T (12 layers, 192 wide, 3 heads), 4x4 patches of 32x32 images, 4 decoder layers, squares of 2x2
tokens. Both get the same images and draw an order of their own in every step; runs alternate, so that a machine
that slows down slows both. Run from the repository root.
"""

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

import ssl_blocks as sb
from tests.pseudocode import PseudocodeRandSAC, segment_order

IMAGE, PATCH, SIDE, DIM, HEADS, DEPTH, DECODER_DEPTH = 32, 4, 2, 192, 3, 12, 4
DTYPES = {"fp32": None, "bf16": torch.bfloat16}


def build() -> tuple[sb.SegmentPrediction, PseudocodeRandSAC]:
    """The library's RandSAC and its twin, with equal weights."""
    tokenizer = sb.PatchTokenizer(image_size=IMAGE, patch_size=PATCH)
    encoder = sb.encoders.timm_vit(image_size=IMAGE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS)
    objective = sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SquarePartitioner(sides=(SIDE,)),
        target=sb.PixelTarget(tokenizer),
        reader=sb.DecoderReader(
            sb.LearnedSkipRouter(encoder_depth=DEPTH, decoder_depth=DECODER_DEPTH),
            sb.SegmentDecoder(grid=encoder.grid, dim=DIM, depth=DECODER_DEPTH, num_heads=HEADS),
        ),
    )
    twin = PseudocodeRandSAC(
        image_size=IMAGE,
        patch_size=PATCH,
        side=SIDE,
        dim=DIM,
        num_heads=HEADS,
        encoder_depth=DEPTH,
        decoder_depth=DECODER_DEPTH,
        positions="fixed",
        eps=1e-6,
    )
    twin.load_from(objective)
    return objective, twin


def check_equal(objective: sb.SegmentPrediction, twin: PseudocodeRandSAC, images: Tensor) -> None:
    """Refuse to compare two models that do not compute the same loss."""
    draw = objective.draw(images)
    loss, _ = twin(images, segment_order(draw, side=SIDE, grid_width=IMAGE // PATCH))
    torch.testing.assert_close(objective(images, draw).loss, loss, rtol=1e-4, atol=1e-4)


def step(model: nn.Module, loss_of: Callable[[], Tensor], dtype: torch.dtype | None, device: torch.device) -> float:
    """Seconds for forward, backward and clearing the gradients."""
    synchronize(device)
    start = time.perf_counter()
    with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
        loss = loss_of()
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    """Processor, its 16-bit instructions, threads, torch, date."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    has = {name: f" {flag}" in text for name, flag in (("AMX-BF16", "amx_bf16"), ("AVX512-BF16", "avx512_bf16"))}
    units = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in has.items())
    name = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return (
        f"{model or platform.processor() or platform.machine()} ({units}), {torch.get_num_threads()} thread(s){name}, "
        f"torch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date()}"
    )


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each, after two to warm up")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="bf16 means autocast")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device: torch.device = args.device

    objective, twin = build()
    objective.to(device), twin.to(device)
    images = torch.randn(args.batch, 3, IMAGE, IMAGE, device=device)
    num_segments = (IMAGE // PATCH // SIDE) ** 2
    with torch.no_grad():
        check_equal(objective, twin, images)

    def ours() -> Tensor:
        loss: Tensor = objective(images).loss
        return loss

    def theirs() -> Tensor:
        order = torch.rand(args.batch, num_segments, device=device).argsort(dim=1)
        loss: Tensor = twin(images, order)[0]
        return loss

    print(machine(device))
    print(
        f"RandSAC ViT-T/{PATCH}, {IMAGE} px, batch {args.batch}, one training step, median of {args.rounds} (min-max)"
    )
    for name in args.dtypes:
        times: dict[str, list[float]] = {"ours": [], "pseudocode": []}
        for turn in range(args.rounds + 2):
            for who, model, loss_of in (("ours", objective, ours), ("pseudocode", twin, theirs)):
                seconds = step(model, loss_of, DTYPES[name], device)
                if turn >= 2:
                    times[who].append(seconds * 1e3)
        ratios = [b / a for a, b in zip(times["ours"], times["pseudocode"], strict=True)]
        shown = ", ".join(f"{k} {statistics.median(v):.0f} ms ({min(v):.0f}-{max(v):.0f})" for k, v in times.items())
        print(f"{name}: {shown}, {statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
