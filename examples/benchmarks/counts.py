"""Count what training steps launch, move and keep, recipe by recipe, without a GPU.

    python -m examples.benchmarks.counts
    python -m examples.benchmarks.counts --presets randsac_cifar10 --batch 512 --names 12

Forward and backward pass of a preset's objective on noise. Operations are those that torch dispatches and that are no
views, as a GPU would launch them one by one: a fused kernel counts once, an operation of several kernels too. They are
counted, as are the bytes that they read and write, on batches of two and four; operations do not grow with them. Kept
are the activations that the backward pass needs with a fused attention kernel, without weights and their copies in 16
bits. The optimizer and the augmentation are left out. Prints a table in markdown. Run from the repository root.
"""

import argparse
import logging
from collections import Counter
from dataclasses import dataclass
from unittest import mock

import torch

import ssl_blocks as sb
from examples.benchmarks.counting import Operations
from examples.benchmarks.measure import machine
from ssl_blocks.cli import load_config
from ssl_blocks.data import find_shape
from ssl_blocks.pretrain.estimate import Activations, activation_bytes, example_images
from ssl_blocks.pretrain.recipe import build
from ssl_blocks.quiet import quiet
from ssl_blocks.recipes import RECIPES

PRESETS = ("randsac_cifar10", "mae_cifar10", "saim_cifar10", "apl_cifar10", "esvit_cifar_small", "combined_cifar_small")
IMAGES = (2, 4)  # of two batches, whose difference is what an image costs; a batch norm takes no single one


@dataclass(frozen=True)
class Row:
    """What was counted of an objective in one precision."""

    forward: Counter[str]
    backward: Counter[str]
    moved: Activations
    kept: Activations

    @property
    def both(self) -> Counter[str]:
        """Operations of both passes by name."""
        return self.forward + self.backward


def count(objective: sb.Objective, shape: sb.data.ImageShape, augmentation: sb.data.Augmentation, dtype: str) -> Row:
    """Count a step of an objective."""
    kept = activation_bytes(objective, shape, "bf16" if dtype == "bf16" else "fp32", augmentation)
    few, more = (_step(objective, shape, augmentation, dtype, batch) for batch in IMAGES)
    sizes = [sum(passed.bytes for passed in step) for step in (few, more)]
    per_image = (sizes[1] - sizes[0]) // (IMAGES[1] - IMAGES[0])
    moved = Activations(per_image=per_image, fixed=sizes[0] - per_image * IMAGES[0])
    return Row(few[0].names, few[1].names, moved, kept)


def _step(
    objective: sb.Objective,
    shape: sb.data.ImageShape,
    augmentation: sb.data.Augmentation,
    dtype: str,
    batch: int,
) -> tuple[Operations, Operations]:
    """Operations of a forward and of a backward pass, with torch's attention in every precision, as on a GPU."""
    images = example_images(objective, shape, augmentation, batch=batch)
    draw = objective.draw(images, generator=torch.Generator().manual_seed(0))
    forward, backward = Operations(), Operations()
    precision = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16")
    with mock.patch("ssl_blocks.parts.attention.wants_seam", return_value=False), forward, precision:
        loss = objective(images, draw).loss
    with backward:
        loss.backward()
    objective.zero_grad()
    return forward, backward


def load(name: str) -> tuple[sb.Objective, sb.data.ImageShape, sb.data.Augmentation]:
    """A preset's objective, and the shape of its images: CIFAR's where neither it nor the data says.

    Raises:
        ValueError: if there is no such preset.
    """
    known = {preset: recipe for recipe in RECIPES.values() for preset in recipe.preset_files()}
    if name not in known:
        raise ValueError(f"preset={name!r} must be one of {', '.join(known)}")
    config = load_config(known[name], ["--preset", name])
    wanted = config.data
    try:
        shape = find_shape(wanted.name, image_size=wanted.image_size, channels=wanted.channels, root=wanted.root)
    except FileNotFoundError:
        size = wanted.image_size or 32
        shape = sb.data.ImageShape(wanted.channels or 3, size, size)
    data = sb.data.ImageData.stand_in(shape)
    return (
        build(config, known[name].assemble, data),
        data.shape,
        config.augmentation(data.shape, data.mean, data.std),
    )


def main() -> None:
    """Count, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="names of presets")
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, default=512, help="images for which bytes are given")
    parser.add_argument("--names", type=int, default=0, help="also list so many of the operations")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine(torch.device('cpu'))}, batch {args.batch}\n")
    print("| preset | precision | operations forward | backward | of them conversions | GB moved | GB kept |")
    print("|---|---|---|---|---|---|---|")
    listed = []
    for name in args.presets:
        subject = load(name)
        for dtype in args.dtypes:
            with quiet("torch._subclasses.fake_tensor", logging.CRITICAL):  # tells what is then done another way
                row = count(*subject, dtype)
            cells = [name, dtype, row.forward.total(), row.backward.total(), row.both["_to_copy"]]
            cells += [f"{size.of(args.batch) / 1e9:.2f}" for size in (row.moved, row.kept)]
            print(f"| {' | '.join(map(str, cells))} |")
            shown = ", ".join(f"{key} {number}" for key, number in row.both.most_common(args.names))
            listed.append(f"{name}, {dtype}: {shown}")
    if args.names:
        print("\n" + "\n".join(listed))


if __name__ == "__main__":
    main()
