"""Packages that load what they export when it is asked for: ``--help`` must not wait for PyTorch."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazily(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__``, ``__dir__`` and ``__all__`` out of the imports that it shows to type checkers.

    A package that uses it reads like any other, and names everything once::

        if TYPE_CHECKING:
            from ssl_blocks.grid import Grid as Grid
        else:
            __getattr__, __dir__ = lazily(__name__, __file__)

    Args:
        package: its ``__name__``.
        file: its ``__file__``.
    """
    homes = shown_imports(Path(file).read_text())
    vars(sys.modules[package])["__all__"] = sorted(homes)

    def __getattr__(name: str) -> Any:  # noqa: N807 - becomes the package's own
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        value = import_module(f"{package}.{name}") if home == package else getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)  # the next time it is simply there
        return value

    return __getattr__, lambda: sorted({*vars(sys.modules[package]), *homes})


def shown_imports(source: str) -> dict[str, str]:
    """Names that a module imports for type checkers alone, and the module that each comes from.

    Examples:
        >>> shown_imports("if TYPE_CHECKING:\\n    from ssl_blocks.values import Views")
        {'Views': 'ssl_blocks.values'}
    """
    shown = [
        statement
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
    ]
    return {alias.name: str(statement.module) for statement in shown for alias in statement.names}
