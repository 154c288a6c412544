"""The metrics of a run stay in one file, whatever interrupts it."""

import csv
import logging
from pathlib import Path

import pytest

from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.logs import MetricsFile
from ssl_blocks.quiet import quiet


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_values_of_one_step_share_a_row_and_columns_may_come_late(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"loss": 2.5}, 0)
    log.log_metrics({"loss": 1.5}, 10)
    log.save()
    log.log_metrics({"knn": 0.25}, 10)
    log.finalize("success")
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "0", "loss": "2.5", "knn": ""},
        {"step": "10", "loss": "1.5", "knn": "0.25"},
    ]


def test_it_writes_by_itself_now_and_then(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.csv", flush_every=3)
    for step in range(5):
        log.log_metrics({"loss": 1.0}, step)
    assert len(rows(tmp_path / "metrics.csv")) == 3


def test_a_resumed_run_keeps_what_it_will_not_log_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,knn\n0,3.0,\n5,2.0,0.5\n6,1.0,\n")
    log = MetricsFile(path, resumed_step=6)
    log.log_metrics({"loss": 1.25}, 6)
    log.save()
    assert [row["step"] for row in rows(path)] == ["0", "5", "6"]
    assert rows(path)[1] == {"step": "5", "loss": "2.0", "knn": "0.5"}
    assert rows(path)[2]["loss"] == "1.25"


def test_a_new_run_starts_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n0,3.0\n")
    log = MetricsFile(path)
    log.log_metrics({"loss": 1.0}, 4)
    log.save()
    assert [row["step"] for row in rows(path)] == ["4"]


def test_quiet_puts_the_level_back() -> None:
    logger = logging.getLogger("tests.quiet")
    with quiet("tests.quiet", logging.ERROR):
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == logging.NOTSET


@pytest.mark.parametrize("text", ["step,loss\nx,1\n", "loss\n1\n", "\0\1\n\0,\n", "step,loss\n,1\n"])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(RunStopped, match=r"metrics.csv is damaged .*repair it, or move it away"):
        MetricsFile(tmp_path / "metrics.csv", resumed_step=3)
