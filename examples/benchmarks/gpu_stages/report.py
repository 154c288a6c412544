"""Results as lines of JSON, and what is said of them. Loads no torch."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"
_LONG = ("stage", "item", "top", "waits", "t")  # not shown behind an item's name


def append(folder: Path, row: Mapping[str, Any]) -> None:
    """Add a line at once."""
    with open(folder / RESULTS, "a") as file:
        file.write(json.dumps({name: _plain(value) for name, value in row.items()}, allow_nan=False) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines so far."""
    path = folder / RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_bad(row: Mapping[str, Any]) -> bool:
    """Whether a result is wrong, or an item did not come to one; what was skipped for want of time is neither."""
    return row.get("ok") is False or "error" in row


def summarise(rows: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
    """A line per result and one about all; and the number of bad ones."""
    bad = [f"{row['stage']}/{row['item']}" for row in rows if is_bad(row)]
    skipped = sum("skipped" in row for row in rows)
    lines = [f"{row['stage']:8s}{row['item']:58s} {values(row)}" for row in rows]
    end = f"{len(rows)} results, {skipped} skipped, {len(bad)} bad{': ' if bad else ''}{', '.join(bad)}"
    return "\n".join([*lines, end]), len(bad)


def values(row: Mapping[str, Any]) -> str:
    """What an item found, short."""
    shown = {name: value for name, value in row.items() if name not in _LONG}
    return "  ".join(f"{k}={f'{v:.4g}' if isinstance(v, float) else str(v)[:160]}" for k, v in shown.items())


def _plain(value: object) -> object:
    """What JSON can hold: it knows no infinity, and five digits are enough."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
