"""Tables of rows that come one after the other: .npy with a .csv beside it, .parquet, .csv; whole or not at all."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ssl_blocks.files import atomically

Columns = Mapping[str, Sequence[Any]]


@runtime_checkable
class Writer(Protocol):
    """Takes rows: features ``[N, D]``, float32, and what is known of each by the names of columns."""

    def __call__(self, features: NDArray[np.float32], columns: Columns, /) -> None:
        """Add rows."""
        ...


def files_of(path: Path) -> list[Path]:
    """What is written for a name: a ``.npy`` has its rows in a ``.csv`` beside it."""
    return [path, path.with_suffix(".csv")] if path.suffix.lower() == ".npy" else [path]


@contextmanager
def feature_writer(path: Path, *, notes: Mapping[str, Any]) -> Iterator[Writer]:
    """Write features as they come; the files get their names at the end.

    Args:
        path: ``.npy``, float32, or ``.parquet``.
        notes: of the features as a whole: in parquet's metadata, under ``ssl_blocks``.

    Raises:
        ImportError: if it is parquet, and pyarrow is not installed.
    """
    if path.suffix.lower() == ".parquet":
        with _parquet(path, notes) as write:
            yield write
        return
    array, beside = files_of(path)
    with atomically(array) as temporary, csv_writer(beside) as write_rows, open(temporary, "wb+") as file:
        count, width = 0, 0

        def write(features: NDArray[np.float32], columns: Columns) -> None:
            nonlocal count, width
            if not width:
                width = features.shape[1]
                _write_header(file, (0, width))
            file.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
            write_rows({"row": range(count, count + len(features)), **columns})
            count += len(features)

        yield write
        end = file.tell()
        file.seek(0)
        _write_header(file, (count, width))  # numpy leaves room for a longer count
        file.seek(end)


def _write_header(file: Any, shape: tuple[int, int]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


@contextmanager
def _parquet(path: Path, notes: Mapping[str, Any]) -> Iterator[Writer]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError("a .parquet file needs pyarrow: pip install 'ssl_blocks[parquet]', or write a .npy") from None
    with atomically(path) as temporary:
        writer: Any = None

        def write(features: NDArray[np.float32], columns: Columns) -> None:
            nonlocal writer
            flat = pa.array(np.ascontiguousarray(features).reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
            table = pa.table(
                {**{name: pa.array(list(column)) for name, column in columns.items()}, "features": vectors}
            )
            if writer is None:
                schema = table.schema.with_metadata({"ssl_blocks": json.dumps(dict(notes))})
                writer = pq.ParquetWriter(temporary, schema)
            writer.write_table(table.cast(writer.schema))

        try:
            yield write
        finally:
            if writer is not None:
                writer.close()


@contextmanager
def csv_writer(path: Path) -> Iterator[Any]:
    """Write rows of a table as they come, their columns by name; the first ones name the columns."""
    with atomically(path) as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file)
        names: list[str] = []

        def write(columns: Columns) -> None:
            if not names:
                names.extend(columns)
                table.writerow(names)
            table.writerows(zip(*columns.values(), strict=True))

        yield write
