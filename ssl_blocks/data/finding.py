"""Images to be looked at one after the other, wherever they lie: nothing is held out, and none is read yet."""

from pathlib import Path
from typing import Any

from ssl_blocks.data.adapters import hold_streams
from ssl_blocks.data.files import SUFFIXES
from ssl_blocks.data.imagefolder import list_images
from ssl_blocks.data.items import Paths
from ssl_blocks.data.reading import Found, Listed
from ssl_blocks.data.sources import SOURCES, find_named
from ssl_blocks.doors import checked
from ssl_blocks.files import at_home

MOST_BYTES = 8 * 2**30  # of a stream
FILES = {".csv": "csv:", ".zip": "zip:", ".npz": "array:", ".tar": "shards:", ".parquet": "parquet:"}


@checked
def find_images(name: Any, *, root: str | Path = ".data") -> Found:
    """Find the images of a data set, and read none: parts as they come.

    Args:
        name: as `load` takes it; or the path of a folder, whose images at any depth are one part without labels, or of
            a file: an image, or a ``.csv``, ``.zip``, ``.npz``, ``.tar`` or ``.parquet``.
        root: folder for downloads.

    Raises:
        FileNotFoundError: if the data is not there.
        ValueError: if the name is unknown, or there are no images.
    """
    if not isinstance(name, str | Path):
        return _named(name, root)
    word, path = str(name), at_home(name)
    if word in SOURCES or (":" in word and not path.exists()):
        return _named(word, root)
    if path.is_dir():
        files, passed = list_images(path)
        return Found(Listed(Paths(files), None), None, ()).told(passed)
    if not path.exists():
        raise FileNotFoundError(f"name={word!r} is no folder and no file that is there, and no data set by name")
    suffix = path.suffix.lower()
    if suffix in FILES:
        return _named(f"{FILES[suffix]}{path}", root)
    if suffix not in SUFFIXES:
        raise ValueError(f"name={word!r} must be an image ({', '.join(SUFFIXES)}), a {', '.join(FILES)} or a folder")
    return Found(Listed(Paths([path]), None), None, ())


def _named(name: Any, root: str | Path) -> Found:
    """What a source holds, by index: a stream is read."""
    found = find_named(name, at_home(root))
    return hold_streams(found, storage="memory", max_bytes=MOST_BYTES, most=None, decoded=None)
