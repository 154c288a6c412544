"""Attention forward and backward: plain operations against torch's kernel, as the seam chooses between them.

    python -m examples.benchmarks.attention --rounds 15

A causal bool mask, head width 64; one thread, runs alternate. Run from the repository root.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.benchmarks.measure import DTYPES, Rate, add_dtypes, alternate, busy_ms, compared, machine, measurable
from ssl_blocks.parts import explicit_attention

SHAPES = ((32, 3, 60), (16, 6, 128), (8, 12, 197))  # images, heads, tokens
WIDTH = 64


def run(attend: Callable[..., Tensor], inputs: list[Tensor], mask: Tensor) -> None:
    """One forward and backward pass."""
    attend(*inputs, attn_mask=mask).sum().backward()  # type: ignore[no-untyped-call]


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each, after two to warm up")
    add_dtypes(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    print(machine(device))
    for name in measurable(args.dtypes, device):
        dtype = DTYPES[name]
        for batch, heads, tokens in SHAPES:
            inputs = [torch.randn(batch, heads, tokens, WIDTH, dtype=dtype, requires_grad=True) for _ in range(3)]
            mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
            ways: dict[str, Callable[..., Tensor]] = {
                "explicit": explicit_attention,
                "torch": F.scaled_dot_product_attention,
            }
            timed = {key: partial(busy_ms, partial(run, way, inputs, mask), device) for key, way in ways.items()}
            rate = Rate(device, dtype)
            times = alternate({"matmul": rate, **timed}, args.rounds)
            products = times.pop("matmul")
            flops = 3 * 2 * 2 * batch * heads * tokens**2 * WIDTH  # two products, thrice; all pairs, masked or not
            shares = ", ".join(f"{key} at {rate.share(flops, taken, products)}" for key, taken in times.items())
            print(f"{name}, {batch} images, {heads} heads, {tokens} tokens: {compared(times)}; {shares}")


if __name__ == "__main__":
    main()
