"""Images a second of one epoch in random order: shards and parquet by index, WebDataset, LitData, and plain files.

    python -m examples.benchmarks.shards --photographs .data/imagenet-sample
    python -m examples.benchmarks.shards --count 2000 --workers 2

The same photographs, the same crops to 224 pixels, the same number of decoding processes; runs alternate, medians. Once
with decoding, once of the bytes alone. Without a folder, photographs are cut out of those that come with scikit-learn.
It needs the packages webdataset, litdata and datasets.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import litdata
import torch
import webdataset
from litdata.streaming.cache import Cache
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from examples.benchmarks.measure import alternate, machine
from ssl_blocks.data import RandomResizedCropFlip
from ssl_blocks.data.files import Box, Encoded, Raw, read_crop
from ssl_blocks.data.sources import find_named
from ssl_blocks.randomness import seeded_generator

BATCH, SIZE = 64, 224
CROP = RandomResizedCropFlip(SIZE)


def read(raw: Raw, *, decode: bool) -> Tensor:
    """A crop of an image, or as many bytes as it has."""
    if not decode:
        return torch.tensor(len(raw.content) if isinstance(raw, Encoded) else len(Path(str(raw)).read_bytes()))

    def box(height: int, width: int) -> Box:
        return CROP.draw_box(height, width, generator=seeded_generator("cpu", height, width))

    return read_crop(raw, box, (SIZE, SIZE), channels=3)


class Indexed(Dataset[Tensor]):
    """What a name of `ssl_blocks.data.load` leads to."""

    def __init__(self, name: str, root: Path, *, decode: bool) -> None:
        self.items, self.decode = find_named(name, root).train.items, decode

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        return read(self.items[index], decode=self.decode)


class Lit(litdata.StreamingDataset):  # type: ignore[misc]
    """LitData's, of bytes."""

    def __init__(self, folder: Path, *, decode: bool) -> None:
        super().__init__(str(folder), shuffle=True, drop_last=False)
        self.decode = decode

    def __getitem__(self, index: Any) -> Tensor:
        return read(Encoded("an image", super().__getitem__(index)), decode=self.decode)


def photographs(folder: Path | None, count: int) -> list[bytes]:
    """Files as they are, or cut out of two photographs in the size of ImageNet's."""
    if folder is not None:
        return [file.read_bytes() for file in sorted(folder.rglob("*.[jJ]*[gG]"))[:count]]
    pictures = [Image.fromarray(image) for image in load_sample_images().images]
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        x, y = (int(torch.randint(most, (), generator=generator)) for most in (140, 52))
        pictures[number % 2].crop((x, y, x + 500, y + 375)).save(stream := io.BytesIO(), "jpeg", quality=92)
        found.append(stream.getvalue())
    return found


def write(root: Path, images: list[bytes]) -> None:
    """The same images in all formats."""
    (root / "files" / "all").mkdir(parents=True)
    (root / "tar").mkdir()
    for number, content in enumerate(images):
        (root / "files" / "all" / f"{number:06}.jpg").write_bytes(content)
    with webdataset.ShardWriter(f"{root}/tar/train-%04d.tar", maxcount=max(1, len(images) // 8), verbose=0) as writer:
        for number, content in enumerate(images):
            writer.write({"__key__": f"{number:06}", "jpg": content, "cls": str(number % 10)})
    rows = {"image": [{"bytes": content, "path": None} for content in images]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    table.to_parquet(f"{root}/train-0.parquet")
    (root / "lit").mkdir()
    writer = Cache(f"{root}/lit", chunk_bytes="64MB")
    for number, content in enumerate(images):
        writer[number] = content
    writer.done()
    writer.merge()


def loaders(root: Path, count: int, workers: int, *, decode: bool) -> dict[str, Callable[[], Iterable[Any]]]:
    """What makes the batches of an epoch, by name."""
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers}
    names = {
        "files": f"imagefolder:{root}/files",
        "shards:, by index": f"shards:{root}/tar",
        "parquet:, by index": f"parquet:{root}/train-0.parquet",
    }
    ours = {name: Indexed(what, root, decode=decode) for name, what in names.items()}
    found: dict[str, Callable[[], Iterable[Any]]] = {
        name: partial(DataLoader, dataset, shuffle=True, **options) for name, dataset in ours.items()
    }
    shards = [str(file) for file in sorted((root / "tar").iterdir())]

    def stream() -> Iterable[Any]:
        pipeline = webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(1000)
        crops = pipeline.to_tuple("jpg").map(lambda item: read(Encoded("an image", item[0]), decode=decode))
        loader: Iterable[Any] = webdataset.WebLoader(crops, **options)
        return loader

    lit = Lit(root / "lit", decode=decode)
    return found | {"WebDataset": stream, "LitData": lambda: litdata.StreamingDataLoader(lit, **options)}


def epoch(make: Callable[[], Iterable[Any]], count: int) -> float:
    """Seconds an image, from the first batch on: processes have started, and shuffling has its images."""
    batches = iter(make())
    first = len(next(batches))
    start = time.perf_counter()
    more = sum(len(batch) for batch in batches)
    assert first + more == count, f"{first + more} of {count} images"
    return (time.perf_counter() - start) / more


def main() -> None:
    """Write, compare, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder of JPEGs")
    parser.add_argument("--count", type=int, default=2000, help="images")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes")
    parser.add_argument("--rounds", type=int, default=5, help="timed epochs of each, after one to warm up")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = photographs(args.photographs, args.count)
    print(machine(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, images)
        for decode in (False, True):
            made = loaders(root, len(images), args.workers, decode=decode)
            times = alternate(
                {name: partial(epoch, make, len(images)) for name, make in made.items()}, args.rounds, warm=1
            )
            medians = {name: statistics.median(values) for name, values in times.items()}
            kilobytes = statistics.mean(map(len, images)) / 1000
            what = "decoded and cropped" if decode else "bytes alone"
            print(f"{len(images)} photographs of {kilobytes:.0f} kB, {what}, {args.workers} processes")
            for name, seconds in medians.items():
                ratio = medians["WebDataset"] / seconds
                print(f"  {name:20} {1 / seconds:9,.0f} images/s  {ratio:5.2f}x of WebDataset")


if __name__ == "__main__":
    main()
