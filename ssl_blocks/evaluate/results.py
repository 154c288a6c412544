"""What an evaluation leaves behind: a table, an entry in results.json, and the model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ssl_blocks.evaluate.rows import TASKS, Row
from ssl_blocks.files import atomically

COLUMNS = (*TASKS[:3], "fewshot_finetune", *TASKS[3:])


def results_table(title: str, rows: Sequence[Row]) -> Table:
    """Arrange the scores that there are: a row for each kind of features, a column for each protocol."""
    table = Table(title=title)
    table.add_column("features")
    found = [task for task in COLUMNS if any(task in row.scores for row in rows)]
    for task in found:
        shown = next(row.scores[task] for row in rows if task in row.scores)
        table.add_column(_heading(task, shown), justify="right")
    for row in rows:
        table.add_row(row.name, *(score_text(task, row.scores.get(task)) for task in found))
    return table


def _heading(task: str, score: Mapping[str, Any]) -> str:
    return {
        "knn": "kNN",
        "probe": "linear probe (rate or C)",
        "fewshot": f"linear probe, {score.get('shots')} labels a class",
        "fewshot_finetune": f"fine-tuned, {score.get('shots')} labels a class",
        "finetune": "fine-tuned",
        "segment": "segmentation: mean IoU, pixels",
    }[task]


def score_text(task: str, score: Mapping[str, Any] | None) -> str:
    """Write a score as a table shows it."""
    if score is None:
        return "-"
    if task == "probe":
        return f"{score['accuracy']:.1%} ({score['chosen']:.2g})"
    if task.startswith("fewshot"):
        return f"{score['mean']:.1%} ± {score['std']:.1%}"
    if task == "segment":
        return f"{score['mean_iou']:.1%}, {score['pixel_accuracy']:.1%}"
    return f"{score['accuracy']:.1%}"


def read_results(path: Path) -> dict[str, Any]:
    """Read a file of results; empty where there is none.

    Raises:
        ValueError: if it is no JSON object, or its evaluations are no list.
    """
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON, and is left as it is: {error}; give another --output") from None
    if not isinstance(results, dict) or not isinstance(results.get("evaluations", []), list):
        raise ValueError(f"{path} holds no results, and is left as it is; give another --output")
    return results


def add_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """Append an evaluation to a file of results; what is in it stays.

    Raises:
        ValueError: if there is something else in that file.
    """
    results = read_results(path)
    results["evaluations"] = [*results.get("evaluations", []), dict(entry)]
    with atomically(path) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")
