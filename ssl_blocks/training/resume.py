"""Going on with a run that was interrupted."""

from pathlib import Path
from typing import Any

import yaml


def run_folder(path: Path) -> Path:
    """The run that ``path`` means: a run's folder, or a checkpoint in its ``checkpoints/``.

    Raises:
        FileNotFoundError: if there is no such run.
    """
    folder = path.parent.parent if path.is_file() else path
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(
            f"--resume {path} must be the folder of a run or a checkpoint in its checkpoints/, "
            f"but {folder} holds no config.yaml"
        )
    return folder


def stored_config(path: Path) -> dict[str, Any]:
    """Values of the ``config.yaml`` of the run that ``path`` means.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if the file is no YAML mapping.
    """
    file = run_folder(path) / "config.yaml"
    try:
        values = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a mapping of fields to values")
    return values
