"""What ``--help`` prints: examples, presets, and every option with its meaning and default."""

import shutil
import textwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ssl_blocks.cli.arguments import DISCRIMINATOR, Option, kind_of, list_options, sub_models
from ssl_blocks.pretrain.config import RunConfig

FIRST, LAST = ("data", "encoder"), ("optimizer", "trainer")  # what recipes add comes in between
WIDEST, INDENT = 110, 30
NOTE = "Lists are written 2,4; true and false are spelled out; None puts a value back to its default meaning."

_SWITCHES = (
    ("--preset NAME|FILE", "take all values from a preset below, or from a YAML file; dotted options change them"),
    (
        "--resume [PATH]",
        "go on with the run in folder PATH, or from a checkpoint file in it, with the values that it was begun with; "
        "without PATH: go on with the run of this --name if there is one, else begin it",
    ),
    ("--replay FILE", "do the step again that a run kept in FILE, and print what is not finite and where first"),
    ("--dry-run", "print configuration, parameters, FLOPs, memory and segments, and stop: nothing is written"),
    ("-h, --help", "print this text, and stop"),
)


def help_text(config_class: type[RunConfig], *, presets: dict[str, str], program: str, width: int | None = None) -> str:
    """Explain a recipe's command line, of which ``program`` is the beginning, in so many columns or the terminal's."""
    width = min(shutil.get_terminal_size().columns, WIDEST) if width is None else width
    name = next(iter(presets), "NAME")
    sections = [
        f"usage: {program} --preset NAME [--OPTION VALUE ...]\n       {program} --resume [PATH] [--OPTION VALUE ...]",
        "examples:\n"
        f"  {program} --preset {name} --dry-run\n"
        f"  {program} --preset {name} --name mine --seed 1 --data.max_train 1000\n"
        f"  {program} --resume runs/{name}",
        option_table("presets:", list(presets.items()), width, indent=max(map(len, presets), default=0) + 4),
        option_table("what to do:", _SWITCHES, width),
    ]
    sections += [option_table(title, rows, width) for title, rows in _groups(config_class)]
    sections.append(textwrap.fill(NOTE, width))
    return "\n\n".join(sections) + "\n"


def _groups(config_class: type[RunConfig]) -> list[tuple[str, list[tuple[str, str]]]]:
    options = list_options(config_class)
    nested = {name: sub_models(field) for name, field in config_class.model_fields.items() if sub_models(field)}
    own = [name for name in nested if name not in FIRST + LAST]
    plain = [option for option in options if "." not in option.path]
    groups = [("run:", [o for o in plain if o.path in RunConfig.model_fields])]
    for name in [*FIRST, *own, *LAST]:
        members = [o for o in options if o.path.startswith(f"{name}.")]
        groups.append((f"{name}: {meaning_of(config_class.model_fields[name], nested[name])}", members))
    recipe = [o for o in plain if o.path not in RunConfig.model_fields]
    groups.insert(1 + len(FIRST) + len(own), ("objective:", recipe))
    return [(title, [option_row(option, nested) for option in members]) for title, members in groups if members]


def meaning_of(field: FieldInfo, models: list[type[BaseModel]]) -> str:
    """Say what a part of a configuration is: its description, or the first line of its docstring."""
    text = field.description or (models[0].__doc__ or "").strip().split("\n")[0].rstrip(".").replace("``", "")
    return _lowered(text)


def _lowered(text: str) -> str:
    """The text with a small first letter, unless its first word is a name such as AdamW."""
    return text[:1].lower() + text[1:] if text.partition(" ")[0][1:].islower() or text[1:2] == " " else text


def option_row(option: Option, nested: dict[str, list[type[BaseModel]]]) -> tuple[str, str]:
    """Write an option and its values on the left, and what they mean on the right."""
    part, _, name = option.path.rpartition(".")
    models = nested.get(part, [])
    text, choices = option.field.description or "", value_text(option.field.annotation)
    if len(models) > 1 and name == DISCRIMINATOR:
        choices = "{" + ",".join(kind_of(m) for m in models) + "}"
        text = "; ".join(f"{kind_of(m)}: {_lowered((m.__doc__ or '').strip().rstrip('.'))}" for m in models)
    elif option.kinds:
        text = f"({' or '.join(option.kinds)}) {text}"
    if option.field.is_required():
        text += " (required)"
    elif option.default not in (None, ""):
        text += f" (default: {default_text(option.default)})"
    return f"--{option.path} {choices}", text


def value_text(annotation: Any) -> str:
    """Show what kind of value an option takes.

    Examples:
        >>> value_text(tuple[float, float]), value_text(int | None), value_text(Literal["a", "b"])
        ('X,X', 'N', '{a,b}')
    """
    members = [m for m in get_args(annotation) if m is not type(None)]
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, members)) + "}"
    if get_origin(annotation) is tuple:
        return ",".join("..." if m is ... else value_text(m) for m in members)
    if members:  # optional, or annotated with limits
        return value_text(members[0])
    names = {bool: "{true,false}", int: "N", float: "X", str: "TEXT", Path: "PATH"}
    return names.get(annotation, "VALUE")


def default_text(value: Any) -> str:
    """Write a value as one would on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(default_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def option_table(title: str, rows: Any, width: int, *, indent: int = INDENT) -> str:
    """Arrange rows of two texts below a title."""
    lines = [title]
    for left, text in rows:
        if len(left) + 4 > indent:
            wrap = textwrap.TextWrapper(width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
            lines += wrap.wrap(left if len(left) + 2 <= width else left.replace(",", ", "))  # lines end behind commas
            left = ""
        body = textwrap.wrap(text, max(20, width - indent)) or [""]
        lines.append((f"  {left}".ljust(indent) + body[0]).rstrip())
        lines += [" " * indent + line for line in body[1:]]
    return "\n".join(lines)
