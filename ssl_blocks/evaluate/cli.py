"""Command line of evaluation: protocols, an encoder, and dotted options."""

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_blocks.cli.arguments import list_options, pair_options, sub_models
from ssl_blocks.cli.command import WRONG_WISH, parse_config
from ssl_blocks.cli.ending import ending_in_a_line, fail
from ssl_blocks.cli.helptext import NOTE, WIDEST, meaning_of, option_row, option_table
from ssl_blocks.code import import_named, is_code
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.rank import check_environment
from ssl_blocks.evaluate.config import GeneralConfig, config_class
from ssl_blocks.evaluation.protocol import Protocol
from ssl_blocks.evaluation.protocols import PROTOCOLS
from ssl_blocks.program import as_typed

INHERITED = ("name", "root", "max_train", "max_test", "max_memory_gib", "corrupt", "value_range")  # of a run's data
NAMES = ", ".join(protocol.name for protocol in PROTOCOLS)


@dataclass(frozen=True)
class Wish:
    """What a command line asks for.

    Protocols are in the order of the table, and ``own`` are those of the user's code; ``word`` names the encoder, and
    ``command`` is what was typed.
    """

    asked: tuple[type[Protocol[Any, Any]], ...]
    own: tuple[type[Protocol[Any, Any]], ...]
    word: str | None
    options: dict[str, str | None]
    command: str

    @property
    def config_class(self) -> type[GeneralConfig]:
        """The configuration that the options are fields of."""
        return config_class(*PROTOCOLS, *self.own)


@ending_in_a_line("no results were added")
def main(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Evaluate an encoder from the command line and return the exit code.

    Options, data and the fit of both are looked at before anything is computed. A mistake is one line on standard
    error and exit code 2; no file is touched then.

    Args:
        argv: arguments; ``None`` takes the process's own.
        program: what the user typed before them; ``None``: the program's name.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        check_environment()
        wish = read_wish(given, program or "evaluate.py")
        if "help" in wish.options or not given:
            print(help_text(program or as_typed(), wish.config_class, own=wish.own), end="")
            return 0
        if not wish.asked:
            raise ValueError(f"say what to evaluate by: one or several of {NAMES}, or MODULE:CLASS of a protocol")
        if wish.word is None:
            names = " ".join(protocol.name for protocol in wish.asked)
            raise ValueError(f"{names}: say what to evaluate: the folder of a run or of an encoder, or a timm model")
        from ssl_blocks.evaluate.run import run  # what computes, and takes seconds to load

        run(wish, wish.word, configure(wish, wish.word))
    except (ValueError, TypeError, OSError, ImportError) as mistake:
        return fail(mistake, WRONG_WISH)
    except RunStopped as stopped:
        return fail(stopped, stopped.exit_code)
    return 0


def read_wish(argv: Sequence[str], program: str) -> Wish:
    """Tell apart protocols, encoder and options; ``program`` is what the user typed before them.

    Raises:
        ValueError: if an option is unknown or given twice, or there are several encoders.
    """
    count = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
    known = {protocol.name: protocol for protocol in PROTOCOLS}
    asked, own, others = [], [], []
    for word in dict.fromkeys(argv[:count]):
        protocol = known.get(word) or _own_protocol(word)
        if protocol is None:
            others.append(word)
            continue
        asked.append(protocol)
        if word not in known:
            own.append(protocol)
    asked.sort(key=lambda protocol: [*PROTOCOLS, *own].index(protocol))
    options = list_options(config_class(*PROTOCOLS, *own))
    given = pair_options(argv[count:], [option.path for option in options], switches=("help",))
    for word in filter(is_code, others[:-1]):
        import_named(word)  # a protocol that is not there is named as such
    if len(others) > 1:
        raise ValueError(f"{' '.join(others)}: give one encoder; the protocols are {NAMES}")
    return Wish(
        asked=tuple(asked),
        own=tuple(own),
        word=others[0] if others else None,
        options=given,
        command=" ".join([program, *argv]),
    )


def _own_protocol(word: str) -> type[Protocol[Any, Any]] | None:
    """A protocol in a user's code; ``None`` for what is none, such as a function that makes an encoder."""
    if not is_code(word):
        return None
    try:
        named = import_named(word)
    except ValueError:
        return None  # refused where encoders are looked for
    return named if isinstance(named, type) and issubclass(named, Protocol) else None


def configure(wish: Wish, word: str) -> Any:
    """Build the configuration of options, with a section for every protocol: of a run, data and seed are known.

    Raises:
        ValueError: naming every wrong field, its value and what was expected.
    """
    from ssl_blocks.evaluation.subject import run_of
    from ssl_blocks.pretrain.resume import measured_range, stored_config

    overrides = {}
    for name, value in wish.options.items():
        if value is None:
            raise ValueError(f"--{name} needs a value: --{name} VALUE")
        overrides[name] = value
    run, base = run_of(word), {}
    if run is not None:
        known = stored_config(run)
        data = {name: value for name, value in known.get("data", {}).items() if name in INHERITED}
        data["value_range"] = data.get("value_range") or measured_range(run)
        if "data.name" in overrides:  # sizes and scales of another data set mean nothing
            data = {name: value for name, value in data.items() if not name.startswith(("max_t", "value_range"))}
        base = {"seed": known.get("seed", 0), "data": data}
    return parse_config(wish.config_class, overrides, base=base, source=f"run {run}")


def help_text(
    call: str, config: type[GeneralConfig], *, own: Sequence[type[Protocol[Any, Any]]] = (), width: int | None = None
) -> str:
    """Explain the command line, and with it protocols of the user's ``own`` code."""
    width = min(shutil.get_terminal_size().columns, WIDEST) if width is None else width
    what = [(protocol.name, _purpose(protocol)) for protocol in [*PROTOCOLS, *own]]
    what.append(("MODULE:CLASS", "in your own code: a protocol; with --help, its options are listed, too"))
    who = [
        ("FOLDER", "a run, or an exported encoder (a folder with config.json and model.safetensors)"),
        ("NAME", "a timm model, such as vit_small_patch16_224.augreg_in21k"),
        ("MODULE:FUNCTION", "in your own code: a function without arguments that returns a model or an adapter"),
    ]
    sections = [
        f"usage: {call} PROTOCOL [PROTOCOL ...] ENCODER [--OPTION VALUE ...]",
        f"examples:\n  {call} knn probe fewshot runs/randsac_digits\n"
        f"  {call} knn vit_tiny_patch16_224 --data.name cifar10 --data.max_train 5000\n"
        f"  {call} finetune runs/randsac_digits --finetune.from_random true",
        option_table("protocols:", what, width),
        option_table("encoder:", who, width),
        *_option_tables(config, width),
        textwrap.fill(NOTE, width),
    ]
    return "\n\n".join(sections) + "\n"


def _purpose(protocol: type[Protocol[Any, Any]]) -> str:
    text = (protocol.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return text[:1].lower() + text[1:]


def _option_tables(config: type[GeneralConfig], width: int) -> list[str]:
    options = list_options(config)
    nested: Mapping[str, Any] = {
        name: sub_models(field) for name, field in config.model_fields.items() if sub_models(field)
    }
    groups = [("general:", [option for option in options if "." not in option.path])]
    for name, models in nested.items():
        members = [option for option in options if option.path.startswith(f"{name}.")]
        groups.append((f"{name}: {meaning_of(config.model_fields[name], models)}", members))
    return [option_table(title, [option_row(o, dict(nested)) for o in members], width) for title, members in groups]
