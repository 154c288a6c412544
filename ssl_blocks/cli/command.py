"""Command line: a YAML preset, dotted overrides, and one readable error for each mistake."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from ssl_blocks.cli.arguments import DISCRIMINATOR, Arguments, explain, nearest, read_arguments
from ssl_blocks.cli.helptext import help_text
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.parallel import is_rank_zero
from ssl_blocks.pretrain.config import RunConfig
from ssl_blocks.pretrain.dryrun import describe
from ssl_blocks.pretrain.resume import run_folder, stored_config
from ssl_blocks.pretrain.run import Assemble, Run

C = TypeVar("C", bound=RunConfig)
M = TypeVar("M", bound=BaseModel)
WRONG_WISH = 2


def main(
    config_class: type[C],
    assemble: Assemble[C],
    *,
    presets: Path,
    prefix: str = "",
    argv: Sequence[str] | None = None,
) -> int:
    """Run a recipe from the command line and return its exit code.

    Whatever can be wrong with the user's wishes is looked at before anything is written: configuration, data,
    the fit of all parts, the run's folder. Such a mistake is one line on standard error and exit code 2.

    Args:
        config_class: the recipe's configuration.
        assemble: builds the objective out of configuration and data.
        presets: folder of YAML presets.
        prefix: what the names of this recipe's own presets begin with.
        argv: arguments; ``None`` takes the process's own.
    """
    try:
        arguments = read_arguments(sys.argv[1:] if argv is None else argv, config_class)
        if arguments.wants_help:
            _print(_help(config_class, presets, prefix))
            return 0
        config = _configure(config_class, arguments, presets, prefix)
        if arguments.dry_run:
            _print(describe(config, assemble))
            return 0
        _check_place(config.folder)
        run = Run.prepare(config, assemble, resume=arguments.resume)
    except (ValueError, TypeError, OSError) as mistake:
        return fail(mistake, WRONG_WISH)
    try:
        run.fit()
    except RunStopped as stopped:
        return fail(stopped, stopped.exit_code)
    return 0


def load_config(config_class: type[C], argv: Sequence[str], *, presets: Path, prefix: str = "") -> C:
    """Read ``--preset`` or ``--resume``, and dotted overrides such as ``--trainer.epochs 5``.

    A preset is a name in the folder ``presets`` or the path of a YAML file. An override that picks another
    ``kind`` of a part puts away what the preset said of that part.

    Raises:
        ValueError: naming the option or field, its value and what was expected.
        FileNotFoundError: if there is no run to resume.
        SystemExit: after ``--help``.
    """
    arguments = read_arguments(argv, config_class)
    if arguments.wants_help:
        _print(_help(config_class, presets, prefix))
        raise SystemExit(0)
    return _configure(config_class, arguments, presets, prefix)


def _configure(config_class: type[C], arguments: Arguments, presets: Path, prefix: str) -> C:
    base: dict[str, Any] = {}
    if isinstance(arguments.resume, Path):
        folder = run_folder(arguments.resume).resolve()
        base = stored_config(arguments.resume) | {"name": folder.name, "output_dir": _short(folder.parent)}
    elif arguments.preset is not None:
        base = read_preset(arguments.preset, presets, prefix=prefix)

    source = f"--preset {arguments.preset}" if arguments.preset is not None else f"--resume {arguments.resume}"
    return parse_config(config_class, arguments.overrides, base=base, source=source)


def parse_config(config_class: type[M], overrides: Mapping[str, str], *, base: Mapping[str, Any], source: str) -> M:
    """Build a configuration of values that are known and options that change them.

    Args:
        config_class: what to build.
        overrides: value of every dotted option that was given.
        base: values by field, of a preset or a run.
        source: what to call these in errors.

    Raises:
        ValueError: naming every wrong field, its value and what was expected.
    """

    class Settings(BaseSettings, config_class):  # type: ignore[valid-type, misc]
        model_config = SettingsConfigDict(
            extra="forbid", cli_exit_on_error=False, cli_avoid_json=True, cli_hide_none_type=True
        )

        @classmethod
        def settings_customise_sources(cls, settings_cls: type[BaseSettings], *_: Any, **__: Any) -> Any:
            return (_BaseSource(settings_cls, dict(base)),)  # no environment variables: they would change runs unseen

    try:
        settings = Settings(_cli_parse_args=[f"--{name}={value}" for name, value in overrides.items()])
    except ValidationError as error:
        raise ValueError(explain(error, config_class, given=overrides, base=source if base else "")) from None
    except SettingsError as error:
        raise ValueError(str(error).removeprefix("error parsing CLI: ")) from None
    return config_class.model_validate(settings.model_dump())


def _short(folder: Path) -> str:
    """The folder as seen from here, where it lies below."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def read_preset(name: str, presets: Path, *, prefix: str = "") -> dict[str, Any]:
    """Read a preset by name or path.

    Raises:
        ValueError: if there is none of that name, or it is no YAML mapping.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else presets / f"{name}.yaml"
    names = list(list_presets(presets, prefix=prefix))
    if not path.is_file() or (path.parent == presets and path.stem not in names):
        near = nearest(name, names)
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"--preset {name!r} is neither a preset nor a YAML file; {hint}presets: {', '.join(names)}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"--preset {path} is not valid YAML: {error.problem}{where}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--preset {path} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--preset {path} must hold a mapping of fields to values, got {type(values).__name__}")
    return values


def list_presets(presets: Path, *, prefix: str = "") -> dict[str, str]:
    """Name of each preset, and what the first line of its comment says."""
    files = sorted(presets.glob(f"{prefix}*.yaml"))
    first = {file.stem: file.read_text().partition("\n")[0] for file in files}
    return {name: line.lstrip("# ") if line.startswith("#") else "" for name, line in first.items()}


def _help(config_class: type[RunConfig], presets: Path, prefix: str) -> str:
    return help_text(config_class, presets=list_presets(presets, prefix=prefix), program=sys.argv[0])


def _check_place(folder: Path) -> None:
    """Refuse a folder that cannot be made or written.

    Raises:
        OSError: naming what is in the way.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise NotADirectoryError(f"output_dir={str(folder.parent)!r} must be a folder, but {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"output_dir={str(folder.parent)!r} must be writable, but {there} is not")


def _print(text: str) -> None:
    if is_rank_zero():
        print(text, end="")


def fail(reason: Exception, exit_code: int) -> int:
    """Tell a mistake in one line on standard error, and return the exit code."""
    if is_rank_zero():
        print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)
    return exit_code


class _BaseSource(PydanticBaseSettingsSource):
    """Values of a preset or of a run, below those of the command line."""

    def __init__(self, settings_cls: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self.values = values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return {
            name: value for name, value in self.values.items() if not _another_kind(value, self.current_state.get(name))
        }


def _another_kind(value: Any, over: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(over, dict):
        return False
    kind = value.get(DISCRIMINATOR)
    return bool(over.get(DISCRIMINATOR, kind) != kind)
