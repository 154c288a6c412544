"""Images a second: augmentation in batches against image by image, and decoding of photographs.

    python -m examples.benchmarks.data --rounds 7
    python -m examples.benchmarks.data --photographs .data/imagenet-sample

One thread, runs alternate, medians of the processor's time. Run from the repository root. Where torchcodec is
installed, its decoder is timed as well.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from examples.benchmarks.measure import alternate, machine
from ssl_blocks.data import FileSplit, RandomResizedCropFlip, load
from ssl_blocks.data.files import Box, read_crop, read_image
from ssl_blocks.data.resample import resample
from ssl_blocks.randomness import seeded_generator

SIZE = 224


def clocked(run: Callable[[], object]) -> float:
    """Milliseconds of processor time, which other processes do not lengthen much."""
    start = time.process_time()
    run()
    return (time.process_time() - start) * 1e3


def compare(what: str, count: int, ways: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """Print the images a second of each way, and its ratio to the last."""
    times = alternate({name: partial(clocked, run) for name, run in ways.items()}, rounds, warm=1)
    medians = {name: statistics.median(values) / 1e3 for name, values in times.items()}
    last = list(medians.values())[-1]
    print(what)
    for name, seconds in medians.items():
        print(f"  {name:42} {count / seconds:9,.0f} images/s  {last / seconds:5.2f}x")


def in_batches(rounds: int) -> None:
    """CIFAR-sized images in memory: resized crop and flip."""
    images = torch.rand(512, 3, 32, 32)
    ours, theirs = (
        RandomResizedCropFlip(32),
        v2.Compose([v2.RandomResizedCrop(32, (0.2, 1)), v2.RandomHorizontalFlip()]),
    )
    smaller = RandomResizedCropFlip(24)
    ways = {
        "batched, 32 to 32 pixels": lambda: ours(images),
        "batched, 32 to 24 pixels, antialiased": lambda: smaller(images),
        "torchvision, image by image, 32 to 32": lambda: torch.stack([theirs(image) for image in images]),
    }
    compare("resized crop and flip of 512 images of 3x32x32", len(images), ways, rounds)


def from_files(folder: Path, rounds: int) -> None:
    """Photographs in files: decode, random crop to 224 pixels."""
    split = load(f"imagefolder:{folder}", image_size=SIZE, storage="stream").train
    assert isinstance(split, FileSplit)
    files = [Path(str(split.source[i])) for i in range(min(64, len(split)))]
    crop = RandomResizedCropFlip(SIZE)

    def box(number: int) -> Callable[[int, int], Box]:
        return lambda height, width: crop.draw_box(height, width, generator=seeded_generator("cpu", number))

    def whole_then_crop() -> None:
        for number, file in enumerate(files):
            image = read_image(file, channels=3)
            top, left, height, width, _ = box(number)(*image.shape[1:])
            edges = torch.tensor([[top, left, height, width]]).float()
            resample(image[None].float(), edges, torch.ones(1), (SIZE, SIZE))

    ways = {
        "crop while decoding": lambda: [read_crop(f, box(i), (SIZE, SIZE), channels=3) for i, f in enumerate(files)],
        "no more than to decode": lambda: [Image.open(file).load() for file in files],
    }
    if importlib.util.find_spec("torchcodec"):
        ways["crop of torchcodec's decoding"] = lambda: [_by_torchcodec(f, box(i)) for i, f in enumerate(files)]
    ways["decode, then crop"] = whole_then_crop
    compare(f"{len(files)} photographs from files, random crop to {SIZE} pixels", len(files), ways, rounds)


def _by_torchcodec(file: Path, choose: Callable[[int, int], Box]) -> Tensor:
    image = importlib.import_module("torchcodec.decoders").decode_jpeg(file)
    top, left, height, width, _ = choose(*image.shape[1:])
    cut: Tensor = TF.resize(image[:, top : top + height, left : left + width], [SIZE, SIZE], antialias=True)
    return cut.contiguous()


def main() -> None:
    """Compare, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each, after one to warm up")
    parser.add_argument("--photographs", type=Path, help="folder of images; without it, files are not measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    in_batches(args.rounds)
    if args.photographs is not None:
        from_files(args.photographs, args.rounds)


if __name__ == "__main__":
    main()
