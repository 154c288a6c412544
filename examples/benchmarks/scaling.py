"""Time of a RandSAC step on a CPU against tokens, batch, depth and blobs, on one thread.

    python -m examples.benchmarks.scaling
    python -m examples.benchmarks.scaling --tokens 64 256 --batches 8 --depths 12 --blobs 7 --rounds 3

One size changes at a time; the others are CIFAR's: ViT-T (192 wide, 12 layers, 4 decoder layers), 64 tokens in squares
of 2x2, batch 8. Images grow with the number of tokens, patches stay 4x4, and so do the 16 segments. Forward and
backward pass in single precision; milliseconds are those that the process got of the CPU, medians; a matrix product is
timed in turn with every step. Prints a table in markdown. Run from the repository root.
"""

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import ssl_blocks as sb
from examples.benchmarks.measure import Rate, alternate, forward_flops, machine, step_ms
from examples.benchmarks.models import RandSACSize, randsac

BATCH = 8
TINY = {"dim": 24, "depth": 1, "decoder_depth": 1}


def subjects(
    base: RandSACSize, tokens: Sequence[int], batches: Sequence[int], depths: Sequence[int], blobs: Sequence[int]
) -> Iterator[tuple[str, RandSACSize, int, int | None]]:
    """What is measured: its name, the model, the batch, and the number of blobs where there are some.

    Raises:
        ValueError: if tokens are not those of a square of 4x4 segments.
    """
    for number in tokens:
        side = math.isqrt(number)
        if side * side != number or side % 4:
            raise ValueError(f"tokens={number} must be the square of a multiple of 4, such as 64 or 256")
        size = replace(base, image=side * base.patch, side=side // 4)
        yield f"{number} tokens", size, BATCH, None
    yield from ((f"batch {batch}", base, batch, None) for batch in batches)
    yield from ((f"depth {depth}", replace(base, depth=depth), BATCH, None) for depth in depths)
    yield from ((f"{count} blobs", base, BATCH, count) for count in blobs)


def measure(size: RandSACSize, batch: int, blobs: int | None, rounds: int) -> tuple[float, str]:
    """Milliseconds of a step, and the share of the machine's rate."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    objective = randsac(size, None if blobs is None else sb.BlobPartitioner(counts=(blobs,)))
    images = torch.randn(batch, 3, size.image, size.image)

    def loss() -> Tensor:
        found: Tensor = objective(images).loss
        return found

    flops, rate = 3 * forward_flops(loss), Rate(device, None)
    times = alternate({"matmul": rate, "step": partial(step_ms, objective, loss, None, device)}, rounds, warm=1)
    return statistics.median(times["step"]), rate.share(flops, times["step"], times["matmul"])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="*", type=int, default=[64, 256, 576, 1024])
    parser.add_argument("--batches", nargs="*", type=int, default=[2, 8, 32])
    parser.add_argument("--depths", nargs="*", type=int, default=[6, 12, 24])
    parser.add_argument("--blobs", nargs="*", type=int, default=[7, 16])
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each, after one to warm up")
    parser.add_argument("--tiny", action="store_true", help="layers of a test's size")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine(torch.device('cpu'))}, fp32\n")
    print("| changed | ms a step | ms an image | share of the machine's rate |")
    print("|---|---|---|---|")
    base = RandSACSize(**TINY) if args.tiny else RandSACSize()
    for name, size, batch, blobs in subjects(base, args.tokens, args.batches, args.depths, args.blobs):
        ms, share = measure(size, batch, blobs, args.rounds)
        print(f"| {name} | {ms:,.0f} | {ms / batch:,.1f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
