"""All methods of the gallery, found by walking its folder."""

from importlib import import_module
from pathlib import Path

import torch

from examples.gallery.run import Method

FOLDER = Path(__file__).parents[2] / "examples" / "gallery"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "run")

# what they draw, read, compare or compose is code of their own, not a choice among parts that are checked elsewhere
OWN = (
    *("aim", "attmask", "beit", "cae", "dinov2", "hpm", "ijepa", "lejepa", "mae_perceptual", "mae_waves", "nepa"),
    "simclr_mae",
)


def method(name: str) -> Method:
    """What a file of the gallery holds."""
    found: Method = import_module(f"examples.gallery.{name}").METHOD
    return found


def tiny(name: str, **size: int):
    """The method at tiny size, its weights always the same, and images or views."""
    torch.manual_seed(0)
    return method(name).tiny(**size)


def shallow(name: str) -> dict[str, int]:
    """A size for checks: one layer where the method takes that, and two images."""
    return {"depth": 2 if name == "data2vec" else 1, "batch": 2}


def draw(objective, images, seed=0):
    """Random choices for the images."""
    return objective.draw(images, generator=torch.Generator().manual_seed(seed))
