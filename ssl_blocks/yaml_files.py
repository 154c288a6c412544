"""YAML of users: a mapping of fields to values, each written once and meaning what it looks like."""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

MOST_BYTES = 2**20
MOST_DEPTH = 30


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping.

    Numbers are decimal, truth is ``true`` or ``false``, and all else is text: ``1:30`` is no 90, ``off`` no ``false``.

    Raises:
        ValueError: naming the file and what is wrong in it: no YAML, no mapping, a key that is given twice or is no
            text, an alias, too many brackets in each other, or too long a file.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, but a configuration must have at most {MOST_BYTES:,}")
    try:
        values = yaml.load(path.read_bytes(), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"{path} is not valid YAML: {error.problem}{where}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of fields to values, got {type(values).__name__}")
    return values


class _Loader(yaml.SafeLoader):
    """Plain values alone, and nothing that only looks like one."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.get_event()  # type: ignore[no-untyped-call]
            raise _wrong(f"*{event.anchor} is an alias: write out what it stands for", event.start_mark)
        self.depth += 1
        if self.depth > MOST_DEPTH:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _wrong(f"more than {MOST_DEPTH} levels lie in each other", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value if key_node.tag == "tag:yaml.org,2002:str" else None
            if key is None:
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                raise _wrong(f"the key {shown} must be text", key_node.start_mark)
            if key in seen:
                raise _wrong(f"{key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _wrong(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]{0,30})", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))
