"""The recipe through its own command line, as a user runs it: what an epoch takes and what is learned."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.benchmarks.gpu_stages.items import Stage

ROOT = Path(__file__).resolve().parents[3]
PRESET, EPOCHS, BATCH = "randsac_cifar10", 800, 512
TINY = {
    "data.max_train": 64,
    "data.max_test": 32,
    "encoder.width": 48,
    "encoder.depth": 2,
    "decoder.depth": 1,
}


def run(stage: Stage) -> None:
    """Measure."""
    if not stage.run("images", lambda: find_images(stage.settings.data)):
        return
    recipe = Recipe(stage)
    try:
        compare_and_train(stage, recipe)
    finally:
        recipe.tidy()


def find_images(folder: Path) -> dict[str, Any]:
    """Wait up to half a minute for images that are still being unpacked."""
    for _ in range(60):
        unpacking = (folder.parent / "unpacking").exists() and not (folder / "READY").exists()
        if (folder / "train").is_dir() and not unpacking:
            return {"folder": str(folder)}
        if not unpacking:
            break
        time.sleep(0.5)
    raise FileNotFoundError(f"{folder}/train is not there: --data must name images in folders of classes")


class Recipe:
    """Runs the recipe in processes of its own.

    Args:
        stage: whose device, images and folders it takes.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage, self.out = stage, stage.settings.out
        self.runs, self.batch = self.out / "run", 16 if stage.tiny else BATCH

    def train(self, name: str, epochs: int, *, seconds: float, **options: Any) -> dict[str, Any]:
        """Train from the start.

        Args:
            name: of the run.
            epochs: how many.
            seconds: after which it is broken off.
            options: more settings, with ``__`` for a dot.

        Raises:
            RuntimeError: with the recipe's last words, if it fails.
        """
        settings = {
            "preset": PRESET,
            "name": name,
            "output_dir": self.runs,
            "data.name": f"imagefolder:{self.stage.settings.data}",
            "trainer.epochs": epochs,
            "trainer.device": self.stage.device,
            "optimizer.batch_size": self.batch,
            "optimizer.warmup_epochs": min(10, epochs / 5),
            **{key.replace("__", "."): value for key, value in options.items()},
            **(TINY if self.stage.tiny else {}),
        }
        command = [sys.executable, "examples/randsac.py", *(f"--{key}={value}" for key, value in settings.items())]
        log, start = self.out / f"recipe-{name}.log", time.monotonic()
        with open(log, "w") as file:
            environment = os.environ | {"COLUMNS": "140"}
            done = subprocess.run(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, env=environment, check=False
            )
        whole, said = time.monotonic() - start, log.read_text().strip()
        if done.returncode:
            raise RuntimeError(f"the recipe ended with {done.returncode}: {said[-300:].splitlines()[-1]}")
        results = json.loads((self.runs / name / "results.json").read_text())
        return {
            "epochs": epochs,
            "seconds": results["seconds"],
            "s_per_epoch": pace(said, batch=self.batch, epochs=epochs) or results["seconds"] / epochs,
            "whole_s": whole,
            "around_s": whole - results["seconds"],
            "knn": {score["name"]: score["knn"] for score in results["scores"]},
        }

    def tidy(self) -> None:
        """Leave one log and the long run's metrics behind: few files come back from a machine that is lent."""
        if (metrics := self.runs / "long" / "metrics.csv").exists():
            shutil.copy(metrics, self.out / "metrics.csv")
        logs = sorted(self.out.glob("recipe-*.log"))
        (self.out / "recipe.log").write_text("\n\n".join(f"### {log.stem}\n{log.read_text()}" for log in logs))
        for log in logs:
            log.unlink()
        shutil.rmtree(self.runs, ignore_errors=True)


def compare_and_train(stage: Stage, recipe: Recipe) -> None:
    """Two short runs, eager and compiled, and then as long a one as there is time for, the faster way."""
    few = {"data__max_test": 1000}
    name = "recipe, 2 epochs, the first warms up"
    eager = stage.run(name, lambda: recipe.train("first", 2, seconds=stage.left, **few), needs=30)
    if eager is None:
        return
    around = eager["around_s"]
    compiled = None
    if stage.left > 2 * around + 90:
        options = {**few, "trainer__compile": "true"}
        seconds = stage.left - around - 20
        compiled = stage.run(
            "recipe, 3 epochs, compiled", lambda: recipe.train("compiled", 3, seconds=seconds, **options)
        )
    best, more, epochs = faster(eager, compiled, stage.left)
    epochs = 2 if stage.tiny else min(EPOCHS, epochs)
    every = max(1, epochs // 4)
    options = {**more, "trainer__knn_every": every, "trainer__checkpoint_every": every}
    long = stage.run(
        f"recipe, {epochs} epochs with kNN, {best}",
        lambda: recipe.train("long", epochs, seconds=stage.left, **options),
        needs=around + 5,
    )
    if long:
        stage.note(f"{EPOCHS} epochs at this pace", minutes=EPOCHS * long["s_per_epoch"] / 60)


def faster(
    eager: Mapping[str, Any], compiled: Mapping[str, Any] | None, left: float
) -> tuple[str, dict[str, Any], int]:
    """The faster way, its options, and the epochs that fit; compiling takes time anew."""
    around = eager["around_s"]
    if compiled is None or compiled["s_per_epoch"] >= eager["s_per_epoch"]:
        return "eager", {}, max(2, int((left - 1.5 * around - 5) / eager["s_per_epoch"] * 0.9))
    epochs = max(3, int((left - 3 * around) / compiled["s_per_epoch"] * 0.7))
    return "compiled", {"trainer__compile": "true"}, epochs


def pace(said: str, *, batch: int, epochs: int) -> float | None:
    """Seconds an epoch in the second half of a run, past warming up and compiling, by the recipe's progress lines.

    They give the mean of images a second since the start; ``None``: there are too few of them.

    Args:
        said: what the recipe printed.
        batch: images in a step.
        epochs: of the run.

    Examples:
        >>> lines = ("step 1/4  loss 2  5 images/s", "step 2/4  loss 1  5 images/s", "step 4/4  loss 1  8 images/s")
        >>> pace(" ".join(lines), batch=10, epochs=2)  # 4 s up to the middle, and 1 s for the second epoch
        1.0
    """
    found = re.findall(r"step (\d+)/(\d+) .*?([\d,.]+) images/s", said)
    lines = [(int(step), int(total), float(speed.replace(",", ""))) for step, total, speed in found]
    if len(lines) < 3 or not all(speed for *_, speed in lines):
        return None
    total = lines[-1][1]
    (first, start), (last, end) = (
        (step, step * batch / speed)
        for step, _, speed in (next(line for line in lines if 2 * line[0] >= total), lines[-1])
    )
    return (end - start) / (last - first) * total / epochs if last > first else None
