"""The whole state of an objective as a folder: encoder, decoder and parts, to continue from elsewhere."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ssl_blocks.data import ImageData, ImageShape
from ssl_blocks.engine.checkpoints import MARK, check_checkpoint, list_checkpoints
from ssl_blocks.files import at_home, read_json
from ssl_blocks.objectives import Objective
from ssl_blocks.pretrain.recipe import Recipe, build
from ssl_blocks.pretrain.resume import stored_config
from ssl_blocks.program import VERSION
from ssl_blocks.yaml_files import read_mapping

FORMAT_VERSION = 1
WEIGHTS, NOTES, CONFIG = "model.safetensors", "state.json", "config.yaml"
PREFIX = "model."  # of the objective in a checkpoint


def write_state(run: str | Path, folder: str | Path) -> Path:
    """Write the objective of a run, as its newest checkpoint has it, into a folder.

    ``model.safetensors`` holds all of its weights and buffers (encoder, decoder, heads, teacher, statistics),
    ``config.yaml`` the configuration that it is assembled by, and ``state.json`` the recipe, the step, shape and
    statistics of the images, and versions. The optimizer's state stays with the run, which goes on by ``--resume``.
    Returned is the folder, which must not be there before, or be empty.

    Raises:
        FileExistsError: if the folder holds anything.
        FileNotFoundError: if there is no run, or it has no checkpoint.
        ValueError: if the checkpoint is damaged.
    """
    run, folder = at_home(run), at_home(folder)
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise FileExistsError(f"folder={str(folder)!r} must be new or empty: a state replaces nothing")
    config, checkpoints = stored_config(run), list_checkpoints(run)
    if not checkpoints:
        raise FileNotFoundError(f"run={str(run)!r} has no checkpoint, which holds the state: train it, or --resume it")
    content = check_checkpoint(checkpoints[0])
    facts = content[MARK]["facts"]
    notes = {
        "format_version": FORMAT_VERSION,
        "recipe": facts["recipe"],
        "step": content[MARK]["step"],
        "image_shape": facts["image shape"],
        "mean": facts["their mean"],
        "std": facts["their std"],
        "versions": {"ssl_blocks": VERSION, "torch": torch.__version__},
    }
    state = {
        name.removeprefix(PREFIX): value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in content["state_dict"].items()
        if name.startswith(PREFIX)
    }
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.incomplete")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        (fresh / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
        (fresh / NOTES).write_text(json.dumps(notes, indent=2) + "\n")
        save_file(state, fresh / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(fresh / NOTES, fresh / WEIGHTS)  # safetensors gives its files to their owner alone
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def begin_with(objective: Objective, folder: str | Path) -> None:
    """Put the weights of a state into an objective of the same parts.

    Raises:
        FileNotFoundError: if the folder holds no state.
        ValueError: if it is damaged, of another format, or of other parts: the first of them is named.
    """
    place = at_home(folder)
    _notes(place)
    try:
        state = load_file(place / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{place / WEIGHTS} is damaged: {error}") from None
    ours = {name: tuple(value.shape) for name, value in objective.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in state.items()}
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if differing:
        name = differing[0]
        own, other = (shapes.get(name, "missing") for shapes in (ours, theirs))
        raise ValueError(
            f"start={str(folder)!r} must hold the parts of this objective, but {name} is {own} here and {other} there "
            f"({len(differing)} such): the configuration must have the same encoder, decoder and image size"
        )
    objective.load_state_dict(state)


def load_state(folder: str | Path, recipe: Recipe[Any]) -> Objective:
    """Assemble the objective of a state by its recipe, with the weights of the state, in evaluation mode.

    Raises:
        FileNotFoundError: if the folder holds no state.
        ValueError: if it is damaged, or of another recipe.
    """
    notes = _notes(at_home(folder))
    name = recipe.config.__name__
    if notes["recipe"] != name:
        raise ValueError(f"folder={str(folder)!r} is of {notes['recipe']}, not of recipe={recipe.name} ({name})")
    config = recipe.config.model_validate(read_mapping(at_home(folder) / CONFIG))
    data = ImageData.stand_in(ImageShape(*notes["image_shape"]))
    objective = build(config, recipe.assemble, data)
    begin_with(objective, folder)
    objective.eval()
    return objective


def recipe_of(folder: str | Path) -> str:
    """Name of the configuration's class of the recipe that a state is of."""
    return str(_notes(at_home(folder))["recipe"])


def _notes(folder: Path) -> Mapping[str, Any]:
    for name in (NOTES, WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"start={str(folder)!r} must be a folder that `ssl-blocks export RUN --format state` wrote, but {name} "
                "is not in it"
            )
    notes = read_json(folder / NOTES)
    if notes.get("format_version") != FORMAT_VERSION:
        found = notes.get("format_version")
        raise ValueError(f"{folder / NOTES} has format {found!r}; this version reads {FORMAT_VERSION}")
    return notes
