"""Loss and nearest-neighbour accuracy over a run."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ssl_blocks.doors import checked
from ssl_blocks.visualize.palette import INK
from ssl_blocks.visualize.panels import Array, Figure, new_figure

# of Okabe and Ito's colours those that stand out on white
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
MARKERS = ("o", "s", "^", "D", "v")
STYLES = ("-", "--", "-.", ":")


@checked
def draw_curves(runs: Mapping[str, str | Path], *, references: Mapping[str, float] | None = None) -> Figure:
    """Show how loss and kNN accuracy went, over epochs.

    A thin line is the loss as logged, a thick one its moving average over a twentieth of the run. Runs differ in
    colour, line and marker. Without any kNN there is no panel for it.

    Args:
        runs: label of each run, and its ``metrics.csv``.
        references: accuracies to compare with, 0 to 1, as horizontal lines: raw pixels, say.

    Returns:
        A figure of one or two panels.

    Raises:
        ValueError: if there is no run, or a file holds no loss per epoch.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> _ = file.write_text("step,epoch,loss,knn\\n0,1,0.9,\\n1,2,0.7,0.4\\n")
        >>> [panel.get_ylabel() for panel in draw_curves({"a": file}, references={"raw pixels": 0.5}).axes]
        ['loss', 'kNN accuracy']
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if not runs:
        raise ValueError("runs={} must name at least one run")
    curves = {_plain(name): _read(path) for name, path in runs.items()}
    with_knn = {name: knn for name, (_, knn) in curves.items() if len(knn)}
    figure = new_figure(9.6 if with_knn else 5.2, 3.6, "constrained")
    panels = figure.subplots(1, 2 if with_knn else 1, squeeze=False)[0]
    for number, (name, (loss, _)) in enumerate(curves.items()):
        color, style = LINES[number % len(LINES)], STYLES[number // len(LINES) % len(STYLES)]
        panels[0].plot(*loss.T, color=color, linewidth=0.6, alpha=0.45)
        panels[0].plot(*_smooth(loss).T, color=color, linestyle=style, linewidth=2, label=name)
        if name in with_knn:
            marker = MARKERS[number % len(MARKERS)]
            panels[1].plot(*with_knn[name].T, color=color, marker=marker, markersize=5, linewidth=2, label=name)
    panels[0].set_ylabel("loss")
    if with_knn:
        for number, (name, value) in enumerate((references or {}).items()):
            panels[1].axhline(value, color=INK, linestyle=STYLES[1 + number % 3], linewidth=1.2, label=_plain(name))
        panels[1].set_ylabel("kNN accuracy")
        panels[1].yaxis.set_major_formatter(PercentFormatter(1))
    for panel in panels:
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(color="#E5E5E5")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        if len(panel.get_legend_handles_labels()[1]) > 1:
            panel.legend(frameon=False, fontsize=9)
    return figure


def _read(path: str | Path) -> tuple[Array, Array]:
    """Points (epoch, loss) and (epoch, kNN) of a ``metrics.csv``."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        loss, knn = (
            np.array([(float(row["epoch"]), float(row[key])) for row in rows if row.get(key) and row.get("epoch")])
            for key in ("loss", "knn")
        )
    except ValueError as error:
        raise ValueError(f"{path} must hold numbers under epoch, loss and knn: {error}") from None
    if not len(loss):
        raise ValueError(f"{path} must hold values of loss per epoch, as a run's metrics.csv does")
    return loss, knn


def _smooth(points: Array) -> Array:
    width = max(1, len(points) // 20)
    kernel = np.ones(width) / width
    means = np.convolve(np.pad(points[:, 1], (width // 2, (width - 1) // 2), mode="edge"), kernel, mode="valid")
    return np.stack([points[:, 0], means], axis=1)


def _plain(name: str) -> str:
    """A label that matplotlib takes for words: no formula between dollars, and not hidden for its underscore."""
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")
