"""What a run prints beside the progress of training."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_blocks.evaluation import FeatureQuality, Scores
from ssl_blocks.pretrain.config import RunConfig
from ssl_blocks.program import evaluation_as_typed


@contextmanager
def stage(console: Console, what: str, *, later: bool = False) -> Iterator[Callable[[], None]]:
    """Show in a terminal that something is being done, and print how long it took: at once, or ``later`` by a call."""
    began = time.perf_counter()
    took = 0.0

    def tell() -> None:
        console.print(f"{what}: {took:.1f} s", soft_wrap=True)

    spinner = "line" if console.options.ascii_only else "dots"
    # a notebook would need widgets for it
    with console.status(Text(f"{what} ..."), spinner=spinner) if console.is_terminal else nullcontext():
        yield tell
    took = time.perf_counter() - began
    if not later:
        tell()


def print_report(
    console: Console,
    config: RunConfig,
    scores: Sequence[Scores],
    figures: Sequence[Path],
    *,
    seconds: float,
    quality: Mapping[str, FeatureQuality] | None = None,
    measured: Mapping[str, float] | None = None,
) -> None:
    """Print the scores beside each other, and where everything lies."""
    if config.note:
        console.print(f"\n{config.note}")
    if scores:
        console.print(scores_table(config.name, scores))
    elif config.trainer.score:
        console.print("no scores: the images have no labels, or there are no test images")
    if quality:
        console.print(quality_table(config.name, quality))
    if measured:
        console.print(measured_table(config.name, measured))
    console.print(f"pretrained {config.trainer.epochs} epochs in {seconds:.0f} s; the run is in {config.folder}")
    for path in [*figures, config.folder / "encoder"]:
        console.print(f"  {path}", soft_wrap=True)
    if scores:
        console.print(f"more: {evaluation_as_typed()} knn probe fewshot {config.folder}", soft_wrap=True)


def scores_table(title: str, scores: Sequence[Scores]) -> Table:
    """Arrange scores as a table."""
    images = f"{scores[0].num_test:,} test images by {scores[0].num_train:,} training images"
    table = Table(title=f"{title}: accuracy on {images}")
    table.add_column("features")
    table.add_column(f"linear probe, {scores[0].shots} labels a class", justify="right")  # what papers report, first
    table.add_column("kNN", justify="right")
    for row in scores:
        probe = "-" if row.fewshot is None else f"{row.fewshot.mean:.1%} ± {row.fewshot.std:.1%}"
        table.add_row(row.name, probe, f"{row.knn:.1%}")
    return table


def quality_table(title: str, quality: Mapping[str, FeatureQuality]) -> Table:
    """Arrange what features are without labels as a table."""
    table = Table(title=f"{title}, without labels")
    table.add_column("measure")
    for name in quality:
        table.add_column(name, justify="right")
    titles = {"rankme": "RankMe", "alpha_req": "alpha-ReQ"}
    for name in ("rankme", "effective_rank", "alpha_req", "uniformity", "alignment", "spread"):
        values = [getattr(found, name) for found in quality.values()]
        shown = ["-" if value is None else f"{value:.3g}" for value in values]
        table.add_row(titles.get(name, name.replace("_", " ")), *shown)
    return table


def measured_table(title: str, measured: Mapping[str, float]) -> Table:
    """Arrange what the objective measured of itself as a table."""
    table = Table(title=f"{title}: the objective on test images")
    for name in measured:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(*(f"{value:.1%}" if 0 <= value <= 1 else f"{value:.4g}" for value in measured.values()))
    return table
