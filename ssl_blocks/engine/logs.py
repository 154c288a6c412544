"""Logs: a CSV that a resumed run goes on with, and loggers of libraries made quieter for a while."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.files import atomically


class MetricsFile(Logger):
    """One CSV with a row per logged step, kept by the step up to which a run is resumed.

    Lightning's own CSV logger deletes the file that it finds. Rows of steps later than ``resumed_step`` are dropped:
    they will be logged again (0 starts anew). The file is written once in so many logged values.
    """

    def __init__(self, path: Path, *, resumed_step: int = 0, flush_every: int = 20) -> None:
        super().__init__()
        self.path, self.flush_every = path, flush_every
        self.rows = _read_rows(path, resumed_step)
        self.unwritten = 0

    name = version = property(lambda self: "")  # no folder of its own

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """``config.yaml`` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add values to the row of a step."""
        values = {"step": str(step)} | {name: str(float(value)) for name, value in metrics.items() if name != "step"}
        if self.rows and self.rows[-1]["step"] == values["step"]:
            self.rows[-1] |= values
        else:
            self.rows.append(values)
        self.unwritten += 1
        if self.unwritten >= self.flush_every:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the whole file anew: it has a row per some tens of steps, and columns may be added at any time."""
        if not self.unwritten:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with atomically(self.path) as temporary, open(temporary, "w", newline="") as file:
            table = csv.DictWriter(file, names, lineterminator="\n")
            table.writeheader()
            table.writerows(self.rows)
        self.unwritten = 0

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()


def _read_rows(path: Path, last_step: int) -> list[dict[str, str]]:
    if last_step == 0 or not path.is_file():
        return []
    with open(path, newline="") as file:
        try:
            rows = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(file)]
            return [row for row in rows if int(row["step"]) < last_step]
        except (KeyError, ValueError, csv.Error) as error:
            what = "it is no text" if isinstance(error, UnicodeDecodeError) else f"{error!r} in a row"
            raise RunStopped(f"{path} is damaged ({what}): repair it, or move it away") from None
