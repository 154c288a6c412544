"""Tokenizers that exports name."""

from collections.abc import Mapping
from typing import Any

from ssl_blocks.code import import_named
from ssl_blocks.parts.tokenize import Tokenizer


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
