"""Names in a user's own code, written ``MODULE:NAME``."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_blocks.parts.tokenize import Tokenizer

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


def rebuild_tokenizer(note: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that an export names; a class of a user's own is imported from here.

    Raises:
        ValueError: if it cannot be imported, is no tokenizer that is built again, or its arguments do not fit.
    """
    name, arguments = note["name"], note["arguments"]
    if arguments is None:
        raise ValueError(
            f"the encoder was pretrained behind a tokenizer {name}, which cannot be built again: give the class "
            "describe() and rebuild(arguments), as ssl_blocks.parts.StoredTokenizer has them, before it is exported"
        )
    try:
        kind = import_named(name)
    except ValueError as error:
        raise ValueError(f"the encoder was pretrained behind a tokenizer, and {error}") from None
    if not (isinstance(kind, type) and all(hasattr(kind, part) for part in ("describe", "rebuild", "untokenize"))):
        raise ValueError(f"{name} must be a tokenizer with describe and rebuild, as the export says")
    try:
        tokenizer: Tokenizer = kind.rebuild(arguments)  # type: ignore[attr-defined]
    except (TypeError, KeyError) as error:
        raise ValueError(f"tokenizer {name} cannot be built of {arguments}: {error}") from error
    return tokenizer
