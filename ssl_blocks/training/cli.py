"""Command line: a YAML preset, dotted overrides, and one readable error for each mistake."""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from ssl_blocks.training.config import RunConfig
from ssl_blocks.training.run import Assemble, Run

C = TypeVar("C", bound=RunConfig)


def main(config_class: type[C], assemble: Assemble[C], *, presets: Path, argv: Sequence[str] | None = None) -> int:
    """Run a recipe from the command line and return its exit code.

    Whatever can be wrong with the user's wishes is looked at before anything is written: configuration, data,
    the fit of all parts, the run's folder. Such a mistake is one line on standard error and exit code 2.

    Args:
        config_class: the recipe's configuration.
        assemble: builds the objective out of configuration and data.
        presets: folder of YAML presets.
        argv: arguments; ``None`` takes the process's own.
    """
    try:
        config = load_config(config_class, sys.argv[1:] if argv is None else argv, presets=presets)
        run = Run.prepare(config, assemble)
    except (ValueError, TypeError, OSError) as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    run.fit()
    return 0


def load_config(config_class: type[C], argv: Sequence[str], *, presets: Path) -> C:
    """Read ``--preset`` and dotted overrides such as ``--trainer.epochs 5``.

    A preset is a name in the folder ``presets`` or the path of a YAML file. An override that picks another
    ``kind`` of a part puts away what the preset said of that part.

    Raises:
        ValueError: naming the option or field, its value and what was expected.
        SystemExit: after ``--help``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    known, rest = parser.parse_known_args(list(argv))
    preset = read_preset(known.preset, presets) if known.preset is not None else {}
    names = ", ".join(_preset_names(presets))

    class Settings(BaseSettings, config_class):  # type: ignore[valid-type, misc]
        __doc__ = f"--preset NAME gives all values at once ({names}, or the path of a YAML file); the rest changes it."
        model_config = SettingsConfigDict(
            extra="forbid",
            cli_exit_on_error=False,
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_prog_name=Path(sys.argv[0]).name,
        )

        @classmethod
        def settings_customise_sources(cls, settings_cls: type[BaseSettings], *_: Any, **__: Any) -> Any:
            return (_PresetSource(settings_cls, preset),)  # no environment variables: they would change runs unseen

    try:
        settings = Settings(_cli_parse_args=rest)
    except ValidationError as error:
        raise ValueError(_explain(error)) from None
    except SettingsError as error:
        raise ValueError(_explain_option(str(error), config_class)) from None
    return config_class.model_validate(settings.model_dump())


def read_preset(name: str, presets: Path) -> dict[str, Any]:
    """Read a preset by name or path.

    Raises:
        ValueError: if there is none of that name, or it is no YAML mapping.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else presets / f"{name}.yaml"
    if not path.is_file():
        names = _preset_names(presets)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"--preset {name!r} is neither a preset nor a YAML file; {hint}presets: {', '.join(names)}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"--preset {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--preset {path} must hold a mapping of fields to values")
    return values


def _preset_names(presets: Path) -> list[str]:
    return sorted(p.stem for p in presets.glob("*.yaml"))


class _PresetSource(PydanticBaseSettingsSource):
    """The preset's values, below those of the command line."""

    def __init__(self, settings_cls: type[BaseSettings], preset: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self.preset = preset

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self.preset.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return {
            name: value for name, value in self.preset.items() if not _another_kind(value, self.current_state, name)
        }


def _another_kind(value: Any, chosen: dict[str, Any], name: str) -> bool:
    over = chosen.get(name)
    return (
        isinstance(value, dict) and isinstance(over, dict) and over.get("kind", value.get("kind")) != value.get("kind")
    )


def _explain(error: ValidationError) -> str:
    """Tell every wrong field in one line each."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        value = "" if item["type"] in ("missing", "extra_forbidden") else f"={item['input']!r}"
        message = {
            "missing": "is required (give it, or a --preset)",
            "extra_forbidden": "is no known field",
        }.get(item["type"], item["msg"][:1].lower() + item["msg"][1:])
        lines.append(f"{where}{value}: {message}")
    return "; ".join(lines)


def _explain_option(message: str, config_class: type[BaseModel]) -> str:
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown is None:
        return message.removeprefix("error parsing CLI: ")
    option = unknown[1].split("=")[0]
    near = difflib.get_close_matches(option.lstrip("-"), field_paths(config_class), n=1)
    return f"{option} is no known option" + (f"; did you mean --{near[0]}?" if near else "") + " (--help lists all)"


def field_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all fields of a configuration, sub-models included."""
    paths: list[str] = []
    for name, field in model.model_fields.items():
        models = [t for t in _members(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
        paths += [path for m in models for path in field_paths(m, f"{prefix}{name}.")] or [prefix + name]
    return list(dict.fromkeys(paths))


def _members(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", None) or (annotation,)
