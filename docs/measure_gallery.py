"""Run methods of the gallery, and note what came of them for the page: ``python -m docs.measure_gallery [NAME ...]``.

One after the other in one process, on the digits; give names to measure some alone. Then write the page by
``python -m docs.make_gallery``.
"""

import datetime
import json
import platform
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import torch
import yaml

from docs.make_gallery import RESULTS, files

COMMAND = "python -m docs.measure_gallery NAME"


def measure(name: str, folder: Path) -> dict[str, float]:
    """Run a method; kNN accuracy before and after, and the seconds of training."""
    method = import_module(f"examples.gallery.{name}").METHOD
    if method.main([f"--output_dir={folder}"]):
        raise RuntimeError(f"{name} failed")
    results = json.loads((folder / f"gallery_{name}" / "results.json").read_text())
    knn = {score["name"]: round(score["knn"], 4) for score in results["scores"]}
    return {"before": knn["random encoder"], "after": knn["pretrained encoder"], "seconds": results["seconds"]}


def main(names: list[str]) -> None:
    """Measure, and keep what was measured before of others."""
    results = yaml.safe_load(RESULTS.read_text()) if RESULTS.is_file() else {"methods": {}}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            results["methods"][name] = measure(name, Path(folder))
        results |= {
            "date": datetime.date.today().isoformat(),
            "hardware": f"{torch.get_num_threads()} CPU thread(s), {platform.machine()}, torch {torch.__version__}",
            "command": COMMAND,
            "note": "The digits at 32x32 pixels; one run each, which says nothing of how methods compare.",
        }
        RESULTS.write_text(yaml.safe_dump(results, sort_keys=True, width=120))


if __name__ == "__main__":
    main(sys.argv[1:] or list(files()))
