"""Data sets of Hugging Face and parquet files as a `Source`, by the package datasets (extra ``datasets``)."""

import threading
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_blocks.data.archives import by_split, find_files
from ssl_blocks.data.files import Encoded, Raw
from ssl_blocks.data.streams import IMAGES, LABELS
from ssl_blocks.doors import checked
from ssl_blocks.files import at_home

_ONE_AT_A_TIME = threading.Lock()  # its tables need not bear threads; processes have a lock each


@checked
class HuggingFaceImages:
    """A data set of Hugging Face whose images are files or their bytes; they are decoded like all others.

    Args:
        dataset: a `datasets.Dataset`.
        image: column of the images; ``None`` takes the first of type ``Image``, or one called ``image`` or ``img``.
        label: column of whole numbers; ``None`` takes the first of type ``ClassLabel``, or one called ``label``.

    Raises:
        ValueError: if there is no such column, or it holds no images.
    """

    def __init__(self, dataset: Any, *, image: str | None = None, label: str | None = None) -> None:
        import datasets

        kinds = dict(dataset.features)
        self.image = image or _first(kinds, datasets.Image, IMAGES)
        if self.image not in kinds:
            raise ValueError(f"image={self.image!r} must be a column of images, one of {sorted(kinds)}")
        label = label or _first(kinds, datasets.ClassLabel, (*LABELS, "fine_label"))
        self.labels: Int[Tensor, " n"] | None = None
        self.class_names: tuple[str, ...] = ()
        if label is not None:
            given = dataset.with_format("numpy")[label][:]
            self.labels = torch.as_tensor(given).long()
            names = getattr(kinds[label], "names", None)
            self.class_names = tuple(map(str, names or range(int(self.labels.max()) + 1)))
        self.table = dataset.select_columns([self.image]).with_format(None)
        try:
            self.table = self.table.cast_column(self.image, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(f"image={self.image!r} must hold files or their bytes: {error}") from error

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Raw:
        with _ONE_AT_A_TIME:
            held = self.table[index][self.image]
        if held["bytes"] is None:
            return Path(held["path"])
        return Encoded(held["path"] or f"image {index}", held["bytes"])


def holds_files(data: Any) -> bool:
    """Whether something is a data set of Hugging Face with images as files or their bytes."""
    kinds = getattr(data, "features", None)
    if not isinstance(kinds, dict) or not hasattr(data, "select_columns") or not hasattr(data, "__getitem__"):
        return False
    datasets = _package("data")
    return isinstance(kinds.get(_first(kinds, datasets.Image, IMAGES)), datasets.Image)


def _first(kinds: dict[str, Any], wanted: type, names: tuple[str, ...]) -> str | None:
    by_type = (name for name, kind in kinds.items() if isinstance(kind, wanted))
    return next(by_type, next((name for name in names if name in kinds), None))


Splits = HuggingFaceImages | tuple[HuggingFaceImages, HuggingFaceImages]


def read_saved(path: str | Path) -> Splits:
    """A data set that ``save_to_disk`` wrote: with splits ``train`` and ``test`` (or ``validation``), or one.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the package is missing, or see `HuggingFaceImages`.
    """
    path = at_home(path)
    if not path.is_dir():
        raise FileNotFoundError(f"hf:{path} must name a folder that save_to_disk wrote")
    held = _package(f"hf:{path}").load_from_disk(str(path))
    if hasattr(held, "features"):
        return HuggingFaceImages(held)
    if "train" not in held:
        raise ValueError(f"hf:{path} must have a split 'train', but has {sorted(held)}")
    test = next((held[name] for name in ("test", "validation") if name in held), None)
    train = HuggingFaceImages(held["train"])
    return train if test is None else (train, HuggingFaceImages(test))


def read_parquet(pattern: str, root: Path) -> Splits:
    """Images in parquet files, of which datasets makes a table that it maps into memory: any row is one read.

    Args:
        pattern: as of ``shards:``; names of files or of their folders tell splits.
        root: the table is kept in ``parquet`` below it, and needs as much room again as the files.

    Raises:
        FileNotFoundError: if there are no such files.
        ValueError: if the package is missing, or see `HuggingFaceImages`.
    """
    parts = by_split(find_files(pattern, "parquet", ".parquet"))
    datasets = _package(f"parquet:{pattern}")
    files = {name: [str(file) for file in part] for name, part in zip(("train", "test"), parts, strict=True) if part}
    held = datasets.load_dataset("parquet", data_files=files, cache_dir=str(root / "parquet"))
    train = HuggingFaceImages(held["train"])
    return (train, HuggingFaceImages(held["test"])) if "test" in held else train


def first_of_parquet(pattern: str) -> Raw:
    """The first image, without a table being made."""
    file = by_split(find_files(pattern, "parquet", ".parquet"))[0][0]
    datasets = _package(f"parquet:{pattern}")
    import pyarrow
    import pyarrow.parquet

    rows = pyarrow.Table.from_batches([next(pyarrow.parquet.ParquetFile(file).iter_batches(1))])
    features = datasets.Features.from_arrow_schema(rows.schema)
    table = datasets.table.InMemoryTable(rows)
    return HuggingFaceImages(datasets.Dataset(table, info=datasets.DatasetInfo(features=features)))[0]


def _package(what: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{what} needs the package datasets: install ssl_blocks[datasets]") from error
    return datasets
