"""Commands for finished runs: words, options, help, and one line for each mistake."""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ssl_blocks.cli.arguments import list_options, pair_options
from ssl_blocks.cli.command import WRONG_WISH, fail, parse_config
from ssl_blocks.cli.helptext import WIDEST, option_row, option_table
from ssl_blocks.code import import_named
from ssl_blocks.deploy.config import EmbedConfig, ExportConfig, PredictConfig, PushConfig
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.settings import StrictModel
from ssl_blocks.files import at_home
from ssl_blocks.program import as_typed

ENCODER = ("ENCODER", "a run, a folder with an exported encoder, a timm model or MODULE:FUNCTION, as for evaluate")
MODEL = ("MODEL", "a folder that finetune.save or segment.save wrote: encoder and head")
IMAGES = ("IMAGES", "a folder or a file; or what data.name takes, such as imagefolder:PATH, csv:PATH, zip:PATH, digits")


@dataclass(frozen=True)
class Command:
    """A command with a fixed number of words and then options.

    Args:
        name: of the command.
        title: what it does, in a line.
        words: name and meaning of each.
        settings: its options.
        home: the function that does it, ``MODULE:FUNCTION``: it takes words and options, and returns what to print.
        examples: what may follow the name.
        has_dry_run: whether ``--dry-run`` is an option.
    """

    name: str
    title: str
    words: tuple[tuple[str, str], ...]
    settings: type[StrictModel]
    home: str
    examples: tuple[str, ...]
    has_dry_run: bool = False


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "embed",
            "Features of your images by a trained encoder, into a .npy or .parquet file.",
            (ENCODER, IMAGES),
            EmbedConfig,
            "ssl_blocks.deploy.features:run",
            ("runs/randsac_digits photos -o features.parquet", "runs/randsac_digits digits -o features.npy"),
        ),
        Command(
            "predict",
            "Classes or masks of your images by a fine-tuned model.",
            (MODEL, IMAGES),
            PredictConfig,
            "ssl_blocks.deploy.predictions:run",
            ("finetuned photos -o predictions.csv --top_k 3", "segmenter photos -o masks"),
        ),
        Command(
            "export",
            "A trained encoder or model for elsewhere: ONNX, torch.export, timm, safetensors, the whole state.",
            (("RUN", f"{ENCODER[1]}; or {MODEL[1]}"),),
            ExportConfig,
            "ssl_blocks.deploy.programs:run",
            ("runs/randsac_digits --format onnx -o encoder.onnx", "runs/randsac_digits --format state -o state"),
        ),
        Command(
            "push",
            "A trained encoder into a repository on the Hugging Face hub, private unless told.",
            (("RUN", "a run, or a folder with an exported encoder"), ("OWNER/NAME", "of the repository")),
            PushConfig,
            "ssl_blocks.deploy.hub:run",
            ("runs/randsac_digits me/digits --dry-run", "runs/randsac_digits me/digits --license mit"),
            has_dry_run=True,
        ),
    )
}


def main(command: Command, argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Run a command and return its exit code: 2, and one line on standard error, for a mistake.

    Args:
        command: one of ``COMMANDS``.
        argv: arguments; ``None`` takes the process's own.
        program: what the user typed before them.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        words, options, is_dry = read_words(command, given)
        if words is None:
            print(help_text(command, program or f"{as_typed()} {command.name}"), end="")
            return 0
        config: Any = parse_config(command.settings, options, base={}, source="")
        more = {"dry_run": is_dry} if command.has_dry_run else {}
        print(import_named(command.home)(*words, config, **more))
    except (ValueError, TypeError, OSError, ImportError) as mistake:
        return fail(mistake, WRONG_WISH)
    except RunStopped as stopped:
        return fail(stopped, stopped.exit_code)
    return 0


def read_words(command: Command, argv: list[str]) -> tuple[list[str] | None, dict[str, str], bool]:
    """Words, options, and whether it is a dry run; no words: help is wanted."""
    count = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
    words, rest = argv[:count], ["--output" if word == "-o" else word for word in argv[count:]]
    options = {option.path: option for option in list_options(command.settings)}
    switches = ("help", *(["dry-run"] if command.has_dry_run else []))
    given = pair_options(rest, list(options), switches=switches)
    if "help" in given or not argv:
        return None, {}, False
    names = " ".join(name for name, _ in command.words)
    if len(words) != len(command.words):
        raise ValueError(f"{command.name} takes {names}, got {' '.join(words) or 'nothing'}: see --help")
    missing = [path for path, option in options.items() if option.field.is_required() and path not in given]
    if missing:
        raise ValueError(f"{command.name} needs --{missing[0]} {_value(options[missing[0]].field.annotation)}")
    values: dict[str, str] = {}
    for name, value in given.items():
        if name in switches:
            continue
        if value is None and options[name].field.annotation is not bool:
            raise ValueError(f"--{name} needs a value: --{name} VALUE")
        values[name] = "true" if value is None else value  # alone, it means yes
    return words, values, "dry-run" in given


def help_text(command: Command, call: str, *, width: int | None = None) -> str:
    """Explain a command."""
    width = min(shutil.get_terminal_size().columns, WIDEST) if width is None else width
    names = " ".join(name for name, _ in command.words)
    options = list_options(command.settings)
    required = "".join(f" --{o.path} {_value(o.field.annotation)}" for o in options if o.field.is_required())
    rows = [option_row(option, {}) for option in options]
    if command.has_dry_run:
        rows.append(("--dry-run", "show what would be done, and stop"))
    sections = [
        f"usage: {call} {names}{required} [--OPTION VALUE ...]",
        command.title,
        "\n".join(["examples:", *(f"  {call} {example}" for example in command.examples)]),
        option_table("what:", command.words, width),
        option_table("options:", rows, width),
        textwrap.fill("Lists are written 2,4; true and false are spelled out, and an option alone means true.", width),
    ]
    return "\n\n".join(sections) + "\n"


def _value(annotation: Any) -> str:
    choices = get_args(annotation)
    return "|".join(map(str, choices)) if choices else "FILE"


def check_output(path: str | Path, *, overwrite: bool, suffixes: Sequence[str] = ()) -> Path:
    """Refuse a place that is taken, or a file of another kind than those that can be written."""
    path = at_home(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"output={str(path)!r} must end in {' or '.join(suffixes)}")
    if path.is_dir() and suffixes:
        raise FileExistsError(f"output={str(path)!r} is a folder: give a file in it")
    if path.exists() and not overwrite:
        raise FileExistsError(f"output={str(path)!r} is there, and stays as it is: give another, or --overwrite")
    return path
