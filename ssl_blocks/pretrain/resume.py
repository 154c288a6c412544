"""Going on with a run that was interrupted."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ssl_blocks.engine.checkpoints import MARK, is_good, list_checkpoints, read_checkpoint
from ssl_blocks.engine.lock import LOCK
from ssl_blocks.files import TEMPORARY_SUFFIX, at_home, atomically, read_json
from ssl_blocks.pretrain.config import RunConfig
from ssl_blocks.yaml_files import read_mapping

# what may differ when a run goes on: where it runs, and what it writes besides; of the trainer all but its length
FREE = {"name", "output_dir", "note", "data.root", "data.workers", "data.corrupt", "optimizer.accumulate"}
EPOCHS = "trainer.epochs"
ALLOWED = f"{EPOCHS} may be raised, and trainer.*, {', '.join(sorted(FREE))} may be others"
FILES = {"imagefolder", "csv", "zip", "shards", "parquet", "array"}  # sources that are named by where they lie


def starting_point(config: RunConfig, resume: Path | bool | None) -> Path | None:
    """Find the checkpoint from which a run starts; ``None`` means from the beginning.

    ``resume`` is ``None``: the run is a new one; ``True``: go on where the run's folder exists; a path: go on from this
    run, or from this checkpoint.

    Raises:
        FileExistsError: if the folder holds a run already and ``resume`` is ``None``, or holds something else.
        FileNotFoundError: if ``resume`` names no run.
        ValueError: if the run was configured otherwise.
    """
    folder = config.folder
    if resume is None or (resume is True and is_free(folder)):
        if not is_free(folder):
            raise FileExistsError(
                f"{folder} already holds a run, which is never overwritten: give another --name or --output_dir, "
                "go on with --resume, or move it"
            )
        return None
    if isinstance(resume, Path):
        folder = run_folder(resume)
    elif not is_run(folder):
        raise FileExistsError(f"--resume: {folder} holds no run (no config.yaml): give the --name of one, or move it")
    changed = _changed(config, stored_config(folder))
    if changed:
        raise ValueError(
            f"--resume must go on as {folder} began, but {', '.join(changed)} differ{'s' * (len(changed) == 1)}: "
            f"leave out what changes, or begin another run with --name ({ALLOWED})"
        )
    if isinstance(resume, Path) and resume.is_file():
        return resume
    return next(iter(list_checkpoints(folder)), None)


def is_free(folder: Path) -> bool:
    """Whether a run may be written there: nothing is there yet, or what a start killed at once left behind."""
    if not folder.exists():
        return True
    left = (entry.name for entry in folder.iterdir()) if folder.is_dir() else iter(("",))
    return all(name == LOCK or name.endswith(TEMPORARY_SUFFIX) for name in left)


def _changed(config: RunConfig, stored: Mapping[str, Any]) -> list[str]:
    """What must not differ where a run goes on, and does, each with both values."""
    ours = dict(_flatten(config.model_dump(mode="json")))
    try:
        begun = type(config).model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        field, reason = ".".join(map(str, first["loc"])), first["msg"]
        raise ValueError(f"what the run was begun with is no configuration of this recipe: {field}: {reason}") from None
    theirs = dict(_flatten(begun.model_dump(mode="json")))
    return [
        f"{name}={ours.get(name)!r} (the run has {theirs.get(name)!r})"
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name) and not _may_differ(name, ours, theirs)
    ]


def _may_differ(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    if name == EPOCHS:
        return bool(ours[name] > theirs[name])
    if name == "data.name":  # images may only lie elsewhere; the checkpoint tells whether they are the same ones
        kinds = {str(values[name]).partition(":")[0] for values in (ours, theirs)}
        return len(kinds) == 1 and kinds <= FILES
    return name in FREE or name.startswith("trainer.")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def run_folder(path: Path) -> Path:
    """The run that ``path`` means: a run's folder, or a checkpoint in its ``checkpoints/``.

    Raises:
        FileNotFoundError: if there is no such run.
    """
    path = at_home(path)
    folder = path.parent.parent if path.is_file() else path
    if not is_run(folder):
        raise FileNotFoundError(
            f"--resume {path} must be the folder of a run or a checkpoint in its checkpoints/, "
            f"but {folder} holds no config.yaml"
        )
    return folder


def lengthen(folder: Path, epochs: int) -> int | None:
    """Note in a run's ``config.yaml`` for how many epochs it goes on; return for how many it went, if for fewer."""
    stored = stored_config(folder)
    trainer: dict[str, Any] = stored["trainer"]
    before: int = trainer["epochs"]
    if before >= epochs:
        return None
    with atomically(folder / "config.yaml") as temporary:
        content = stored | {"trainer": trainer | {"epochs": epochs}}
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))
    return before


def is_run(folder: Path) -> bool:
    """Whether a run was begun in a folder: there is its configuration, or a checkpoint with a copy of it."""
    return (folder / "config.yaml").is_file() or _copy(folder) is not None


def stored_config(path: Path) -> dict[str, Any]:
    """Values of the ``config.yaml`` of the run that ``path`` means.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if the file is no YAML mapping.
    """
    folder = run_folder(path)
    file = folder / "config.yaml"
    if not file.is_file() and (copy := _copy(folder)) is not None:
        return copy
    try:
        return read_mapping(file)
    except ValueError as error:
        way_out = "; its checkpoints have a copy: delete the file, and --resume writes it again"
        raise ValueError(f"{error}{way_out if _copy(folder) else ''}") from None


def _copy(folder: Path) -> dict[str, Any] | None:
    """The configuration that the newest good checkpoint has a copy of."""
    good = next(filter(is_good, list_checkpoints(folder)), None)
    return None if good is None else dict(read_checkpoint(good)[MARK].get("configuration", {})) or None


def check_copy(config: RunConfig, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Refuse by a ``ValueError`` a ``config.yaml`` that is not what the checkpoint has a copy of."""
    copy = checkpoint[MARK].get("configuration")
    changed = _changed(config, copy) if copy else []
    if changed:
        raise ValueError(
            f"{path.parent.parent / 'config.yaml'} is not what the run was begun with, for {path} has a copy: "
            f"{', '.join(changed)}; put it back, or delete the file, and --resume writes it again"
        )


def measured_range(run: Path) -> list[float] | None:
    """The values that a run found to be black and white; ``None``: those of 8 bits, or it is not complete."""
    file = run / "results.json"
    found = read_json(file).get("value_range") if file.is_file() else None
    return None if found is None else [float(value) for value in found]
