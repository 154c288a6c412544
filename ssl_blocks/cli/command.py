"""Command line: a YAML preset, dotted overrides, and one readable error for each mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from ssl_blocks import pretrain
from ssl_blocks.cli.arguments import DISCRIMINATOR, Arguments, closest_word, explain, read_arguments
from ssl_blocks.cli.ending import ending_in_a_line, fail as fail
from ssl_blocks.cli.helptext import help_text
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.rank import check_environment, is_rank_zero
from ssl_blocks.engine.settings import default_kind
from ssl_blocks.files import at_home
from ssl_blocks.pretrain.config import RunConfig
from ssl_blocks.pretrain.recipe import Recipe
from ssl_blocks.program import as_typed
from ssl_blocks.yaml_files import read_mapping

C = TypeVar("C", bound=RunConfig)
M = TypeVar("M", bound=BaseModel)
WRONG_WISH = 2


@ending_in_a_line("nothing was written")
def main(recipe: Recipe[C], argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Run a recipe from the command line and return its exit code.

    Whatever can be wrong with the user's wishes is looked at before anything is written: configuration, data,
    the fit of all parts, the run's folder. Such a mistake is one line on standard error and exit code 2.

    Args:
        recipe: what to pretrain by.
        argv: arguments; ``None`` takes the process's own.
        program: what the user typed in front of them; ``None``: the program's name.
    """
    try:
        check_environment()
        arguments = read_arguments(sys.argv[1:] if argv is None else argv, recipe.config)
        if arguments.wants_help:
            _print_help(recipe, program)
            return 0
        config = _configure(recipe, arguments)
        if arguments.replay is not None:
            _print("\n".join([*pretrain.replay(config, recipe.assemble, arguments.replay), ""]))
            return 0
        if arguments.dry_run:
            _print(pretrain.describe(config, recipe.assemble))
            return 0
        _check_place(config.folder)
        run = pretrain.Run.prepare(config, recipe.assemble, resume=arguments.resume)
    except (ValueError, TypeError, OSError) as mistake:
        return fail(mistake, WRONG_WISH)
    try:
        run.fit()
    except RunStopped as stopped:
        return fail(stopped, stopped.exit_code)
    return 0


def load_config(recipe: Recipe[C], argv: Sequence[str]) -> C:
    """Read ``--preset`` or ``--resume``, and dotted overrides such as ``--trainer.epochs 5``.

    A preset is the name of one of the recipe's, or the path of a YAML file. An override that picks another
    ``kind`` of a part puts away what the preset said of that part.

    Raises:
        ValueError: naming the option or field, its value and what was expected.
        FileNotFoundError: if there is no run to resume.
        SystemExit: after ``--help``.
    """
    arguments = read_arguments(argv, recipe.config)
    if arguments.wants_help:
        _print_help(recipe, None)
        raise SystemExit(0)
    return _configure(recipe, arguments)


def _configure(recipe: Recipe[C], arguments: Arguments) -> C:
    base: dict[str, Any] = {}
    if isinstance(arguments.resume, Path):
        folder = pretrain.run_folder(arguments.resume).resolve()
        base = pretrain.stored_config(arguments.resume) | {"name": folder.name, "output_dir": _short(folder.parent)}
    elif arguments.replay is not None:
        base = pretrain.dumped_config(arguments.replay)
    elif arguments.preset is not None:
        base = read_preset(arguments.preset, recipe)

    known = {"--preset": arguments.preset, "--replay": arguments.replay, "--resume": arguments.resume}
    source = next((f"{option} {value}" for option, value in known.items() if value is not None), "")
    config = parse_config(recipe.config, arguments.overrides, base=base, source=source)
    _check_effect(config, arguments.overrides)
    return config


def _check_effect(config: RunConfig, given: Mapping[str, str]) -> None:
    """Refuse an option beside a choice that leaves it without effect."""
    for idle, choice in config.idle().items():
        for name, value in given.items():
            if name == idle or name.startswith(f"{idle}."):
                raise ValueError(f"--{name} {value} has no effect with {choice}: leave it out")


def parse_config(config_class: type[M], overrides: Mapping[str, str], *, base: Mapping[str, Any], source: str) -> M:
    """Build a configuration of values that are known, ``base``, out of ``source``, and options that change them.

    Raises:
        ValueError: naming every wrong field, its value and what was expected.
    """
    for name in base:
        if name.startswith("_"):  # pydantic-settings would take it for an argument of its own
            raise ValueError(f"{name} is no known field (in {source})")
    settings, options = _sources(config_class)
    kept = {name: part for name, part in base.items() if not _another_kind(config_class, name, part, overrides)}
    try:
        given = options(args=[f"--{name}={value}" for name, value in overrides.items()])
        found = settings(_cli_settings_source=given, **kept)
    except ValidationError as error:
        raise ValueError(explain(error, config_class, given=overrides, base=source if base else "")) from None
    except SettingsError as error:
        raise ValueError(str(error).removeprefix("error parsing CLI: ")) from None
    return config_class.model_validate(found.model_dump())


def _another_kind(config_class: type[BaseModel], name: str, part: Any, overrides: Mapping[str, str]) -> bool:
    """Whether options choose another kind of a part than is known of it."""
    if not isinstance(part, dict):
        return False
    kind = default_kind(config_class, name, part) or part.get(DISCRIMINATOR)
    return overrides.get(f"{name}.{DISCRIMINATOR}", kind) != kind


@cache
def _sources(config_class: type[BaseModel]) -> tuple[Callable[..., BaseModel], CliSettingsSource[Any]]:
    """What reads a configuration from options over known values: made once, which takes longer than reading."""

    class Settings(BaseSettings, config_class):  # type: ignore[valid-type, misc]
        model_config = SettingsConfigDict(extra="forbid", cli_exit_on_error=False, cli_avoid_json=True)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: Any, *_: Any, **__: Any
        ) -> Any:
            return (init_settings,)  # no environment variables: they would change runs unseen

    return Settings, CliSettingsSource(Settings)


def _short(folder: Path) -> str:
    """The folder as seen from here, where it lies below."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def read_preset(name: str, recipe: Recipe[Any]) -> dict[str, Any]:
    """Read a preset of a recipe by its name, or any by its path."""
    files = recipe.preset_files()
    path = at_home(name) if name.endswith((".yaml", ".yml")) else files.get(name)
    if path is None or not path.is_file():
        near = closest_word(name, list(files))
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"--preset {name!r} is neither a preset nor a YAML file; {hint}presets: {', '.join(files)}")
    try:
        return read_mapping(path)
    except ValueError as error:
        raise ValueError(f"--preset {error}") from None


def list_presets(recipe: Recipe[Any]) -> dict[str, str]:
    """Name of each preset of a recipe, and what the first line of its comment says."""
    first = {name: file.read_text().partition("\n")[0] for name, file in recipe.preset_files().items()}
    return {name: line.lstrip("# ") if line.startswith("#") else "" for name, line in first.items()}


def _print_help(recipe: Recipe[Any], program: str | None) -> None:
    _print(help_text(recipe.config, presets=list_presets(recipe), program=program or as_typed()))


def _check_place(folder: Path) -> None:
    """Refuse a folder that cannot be made or written."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise NotADirectoryError(f"output_dir={str(folder.parent)!r} must be a folder, but {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"output_dir={str(folder.parent)!r} must be writable, but {there} is not")


def _print(text: str) -> None:
    if is_rank_zero():
        print(text, end="")
