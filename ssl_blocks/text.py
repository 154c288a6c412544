"""Text is text: what users wrote reaches terminals, Markdown and code as they wrote it, never as markup."""

import re
from typing import Any

from rich.console import Console


def terminal(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints words as they are, in tables and titles, too.

    Examples:
        >>> terminal().print("see [/home/me]")
        see [/home/me]
    """
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False)


def plain(text: Any) -> str:
    """Text for a line or a table cell of Markdown, in one line and without meaning.

    Examples:
        >>> print(plain("a|b *c* [/d]"))
        a\\|b \\*c\\* \\[/d\\]
    """
    return re.sub(r"([\\`*_\[\]<>|~&#$])", r"\\\1", _one_line(text))


def code(text: Any) -> str:
    """Text as code within a line or a table cell of Markdown; in no table, give it without bars.

    Examples:
        >>> print(code("squares"), code("a`b"))
        `squares` `` a`b ``
    """
    text = _one_line(text).replace("|", "\\|")  # tables are cut at bars before code is looked for
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{text or ' '}{space}{fence}"


def quoted(text: Any) -> str:
    """Text as a literal of Python, in double quotes where it needs no escapes.

    Examples:
        >>> print(quoted("runs/a"))
        "runs/a"
    """
    text = str(text)
    return f'"{text}"' if repr(text) == f"'{text}'" and '"' not in text else repr(text)


def _one_line(text: Any) -> str:
    words = " ".join(str(text).split())
    return words.encode("utf-8", "backslashreplace").decode()  # names of files may be of other bytes
