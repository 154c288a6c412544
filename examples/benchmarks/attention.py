"""Attention forward and backward: plain operations against torch's kernel, as the seam chooses between them.

    python -m examples.benchmarks.attention --rounds 15

A causal bool mask, head width 64; one thread, runs alternate. Run from the repository root.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.benchmarks.measure import DTYPES, alternate, machine
from ssl_blocks.parts import explicit_attention

SHAPES = ((32, 3, 60), (16, 6, 128), (8, 12, 197))  # images, heads, tokens


def milliseconds(attend: Callable[..., Tensor], inputs: list[Tensor], mask: Tensor) -> float:
    """Time of one forward and backward pass."""
    start = time.perf_counter()
    attend(*inputs, attn_mask=mask).sum().backward()  # type: ignore[no-untyped-call]
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each, after two to warm up")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    for name in args.dtypes:
        dtype = DTYPES[name]
        for batch, heads, tokens in SHAPES:
            inputs = [torch.randn(batch, heads, tokens, 64, dtype=dtype, requires_grad=True) for _ in range(3)]
            mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
            ways: dict[str, Callable[..., Tensor]] = {
                "explicit": explicit_attention,
                "torch": F.scaled_dot_product_attention,
            }
            timed = {name: partial(milliseconds, way, inputs, mask) for name, way in ways.items()}
            times = alternate(timed, args.rounds)
            explicit, kernel = (statistics.median(v) for v in times.values())
            print(
                f"{name}, {batch} images, {heads} heads, {tokens} tokens: explicit {explicit:.1f} ms, "
                f"torch {kernel:.1f} ms, {kernel / explicit:.2f}x"
            )


if __name__ == "__main__":
    main()
