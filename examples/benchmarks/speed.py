"""One training step of RandSAC: this library against the paper's pseudocode on ``nn.Transformer``.

    python -m examples.benchmarks.speed --batch 32 --rounds 15

CIFAR size: ViT-T (12 layers, 192 wide, 3 heads), 4x4 patches of 32x32 images, 4 decoder layers, squares of 2x2
tokens. Both get the same images and draw an order of their own in every step; runs alternate, so that a machine
that slows down slows both. On one thread of a CPU milliseconds are those that the process got of it. Run from the
repository root.
"""

import argparse

import torch
from torch import Tensor

from examples.benchmarks.measure import add_dtypes, compare_steps, machine
from examples.benchmarks.models import RandSACSize, check_equal, pseudocode, randsac


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each, after two to warm up")
    add_dtypes(parser)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device: torch.device = args.device
    size = RandSACSize()
    objective = randsac(size).to(device)
    twin = pseudocode(size, objective).to(device)
    images = torch.randn(args.batch, 3, size.image, size.image, device=device)
    check_equal(size, objective, twin, images)

    def ours() -> Tensor:
        loss: Tensor = objective(images).loss
        return loss

    def theirs() -> Tensor:
        order = torch.rand(args.batch, size.num_segments, device=device).argsort(dim=1)
        loss: Tensor = twin(images, order)[0]
        return loss

    print(machine(device))
    print(
        f"RandSAC ViT-T/{size.patch}, {size.image} px, batch {args.batch}, one training step, median of {args.rounds} "
        "(min-max)"
    )
    compare_steps({"ours": (objective, ours), "pseudocode": (twin, theirs)}, args.dtypes, args.rounds, device)


if __name__ == "__main__":
    main()
