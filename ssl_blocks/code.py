"""Names in a user's own code, written ``MODULE:NAME``."""

import importlib
import sys
from pathlib import Path
from typing import Any

ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")  # where timm looks for a model that is none of its own


def is_code(word: str) -> bool:
    """Whether a word names something in a module.

    Examples:
        >>> is_code("my_models:build"), is_code("hf-hub:timm/vit"), is_code("runs/a:b")
        (True, False, False)
    """
    return ":" in word and not word.startswith(ELSEWHERE) and "/" not in word.partition(":")[0]


def import_named(word: str) -> Any:
    """What a word names, in a module that can be imported from here."""
    module, _, name = word.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{word!r} cannot be imported: {error}") from error
