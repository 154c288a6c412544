"""What an evaluation leaves behind: a table, an entry in results.json, and the model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ssl_blocks.evaluation.protocol import Protocol
from ssl_blocks.files import alone_with, atomically

Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by what was scored, and by protocol


def results_table(title: str, rows: Rows, protocols: Sequence[Protocol[Any, Any]]) -> Table:
    """Arrange the scores that there are: a row for each kind of features, a column for each protocol."""
    table = Table(title=title)
    table.add_column("features")
    for protocol in protocols:
        table.add_column(protocol.heading, justify="right")
    for name, scores in rows.items():
        table.add_row(name, *(scores[p.name]["shown"] if p.name in scores else "-" for p in protocols))
    return table


def read_results(path: Path) -> dict[str, Any]:
    """Read a file of results; empty where there is none."""
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON, and is left as it is: {error}; give another --output") from None
    known = isinstance(results, dict) and (
        not results or "evaluations" in results or {"recipe", "scores"} <= {*results}
    )
    if not known or not isinstance(results.get("evaluations", []), list):
        raise ValueError(f"{path} holds no results, and is left as it is; give another --output")
    return dict(results)


def add_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """Append an evaluation to a file of results; what is in it stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone_with(path):  # others may evaluate at the same time
        results = read_results(path)
        results["evaluations"] = [*results.get("evaluations", []), dict(entry)]
        with atomically(path) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n")
