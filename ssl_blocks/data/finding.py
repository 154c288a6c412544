"""Images to be looked at one after the other, wherever they lie: nothing is held out, and none is read yet."""

from pathlib import Path
from typing import Any

from ssl_blocks.data.adapters import found_remark
from ssl_blocks.data.files import SUFFIXES
from ssl_blocks.data.imagefolder import list_images
from ssl_blocks.data.items import Paths
from ssl_blocks.data.reading import Found, Listed
from ssl_blocks.data.sources import SOURCES, find_named
from ssl_blocks.doors import checked
from ssl_blocks.files import at_home

FILES = {".csv": "csv:", ".zip": "zip:", ".npz": "array:"}


@checked
def find_images(name: Any, *, root: str | Path = ".data") -> Found:
    """Find the images of a data set, and read none: parts as they come.

    Args:
        name: as `load` takes it; or the path of a folder, whose images at any depth are one part without labels, or of
            a file: an image, or a ``.csv``, ``.zip`` or ``.npz``.
        root: folder for downloads.

    Raises:
        FileNotFoundError: if the data is not there.
        ValueError: if the name is unknown, or there are no images.
    """
    if not isinstance(name, str | Path):
        return find_named(name, at_home(root))
    word, path = str(name), at_home(name)
    if word in SOURCES or (":" in word and not path.exists()):
        return find_named(word, at_home(root))
    if path.is_dir():
        files, passed = list_images(path)
        beside = f"; passed over {passed}" if passed.kinds else ""
        return Found(Listed(Paths(files), None), None, (), (found_remark(len(files), ()) + beside,))
    if not path.exists():
        raise FileNotFoundError(f"name={word!r} is no folder and no file that is there, and no data set by name")
    suffix = path.suffix.lower()
    if suffix in FILES:
        return find_named(f"{FILES[suffix]}{path}", at_home(root))
    if suffix not in SUFFIXES:
        raise ValueError(f"name={word!r} must be an image ({', '.join(SUFFIXES)}), a {', '.join(FILES)} or a folder")
    return Found(Listed(Paths([path]), None), None, ())
