"""Arguments of a recipe's command line, and mistakes in them told in words."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ssl_blocks.files import at_home

DISCRIMINATOR = "kind"
MOST_SHOWN = 120  # characters of a wrong value
WANTED = {  # by types of errors, or how they begin
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
}
SWITCHES = ("preset", "resume", "replay", "dry-run", "help")


@dataclass(frozen=True)
class Arguments:
    """What a command line asks for: a preset, a run to go on with (``True``: where it exists), options by name."""

    preset: str | None
    resume: Path | Literal[True] | None
    replay: Path | None
    dry_run: bool
    wants_help: bool
    overrides: dict[str, str]


@dataclass(frozen=True)
class Option:
    """One field of a configuration, as the command line knows it; ``default`` is ``None`` also where it is required.

    Where the field belongs to a part that is chosen, ``kinds`` are those that have it.
    """

    path: str
    field: FieldInfo
    default: Any
    kinds: tuple[str, ...] = ()


def read_arguments(argv: Sequence[str], config_class: type[BaseModel]) -> Arguments:
    """Tell apart the options of a command line."""
    paths = [option.path for option in list_options(config_class)]
    given = pair_options(argv, paths, switches=SWITCHES)
    for name, value in given.items():
        if name in ("dry-run", "help") and value is not None:
            raise ValueError(f"--{name}={value}: --{name} takes no value")
        if value is None and name not in ("dry-run", "help", "resume"):
            raise ValueError(f"--{name} needs a value: --{name} VALUE")
    resume = given.get("resume")
    if resume is not None:
        for name in ("preset", "name", "output_dir"):
            if name in given:
                raise ValueError(
                    f"--{name} {given[name]} contradicts --resume {resume}, which says what to go on with: leave out "
                    f"--{name}, or give --resume without a path"
                )
    if "replay" in given and {"preset", "resume", "dry-run"} & set(given):
        raise ValueError(f"--replay {given['replay']} is of a run and does one step of it again: leave out the others")
    return Arguments(
        preset=given.get("preset"),
        replay=None if given.get("replay") is None else at_home(str(given["replay"])),
        resume=True if "resume" in given and resume is None else None if resume is None else at_home(resume),
        dry_run="dry-run" in given,
        wants_help="help" in given,
        overrides={name: value for name, value in given.items() if name not in SWITCHES and value is not None},
    )


def pair_options(argv: Sequence[str], paths: Sequence[str], *, switches: Sequence[str]) -> dict[str, str | None]:
    """Pair options with their values, in either spelling, ``--a b`` and ``--a=b``; ``None`` where no value follows.

    ``paths`` are dotted names of a configuration's fields, ``switches`` other options; ``help`` and ``dry-run`` take no
    value.
    """
    given: dict[str, str | None] = {}
    for name, value in _pairs(argv, paths, switches):
        if name in given:
            raise ValueError(f"--{name} is given twice, as {given[name]} and as {value}: give it once")
        given[name] = value
    return given


def _pairs(argv: Sequence[str], paths: Sequence[str], switches: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    rest = ["--help" if argument == "-h" else argument for argument in argv]
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            example = "--preset NAME" if "preset" in switches else f"--{paths[0]} VALUE"
            raise ValueError(f"{argument!r} stands alone, expected an option such as {example} (--help lists all)")
        if name not in switches and name not in paths:
            near = closest_word(name, [*paths, *switches])
            hint = f"; did you mean --{near}?" if near else ""
            raise ValueError(f"--{name}{equals}{value} is no known option{hint} (--help lists all)")
        if equals:
            yield name, value
        elif name in ("dry-run", "help") or not rest or rest[0].startswith("--") or rest[0] == "-h":
            yield name, None
        else:
            yield name, rest.pop(0)


def closest_word(name: str, names: Sequence[str], *, at_least: float = 0.6) -> str | None:
    """Find the dotted name that was probably meant, by its last part or as a whole, if one is at least so like.

    Examples:
        >>> closest_word("epoch", ["data.name", "trainer.epochs", "seed"])
        'trainer.epochs'
    """

    def alike(other: str) -> tuple[float, float]:
        own, others = name.rpartition(".")[2].lower(), other.rpartition(".")[2].lower()
        whole = SequenceMatcher(None, name.lower(), other.lower()).ratio()
        return max(whole, SequenceMatcher(None, own, others).ratio(), 0.6 * (own in others)), whole

    best = max(names, key=alike, default=None)
    return best if best is not None and alike(best)[0] >= at_least else None


def list_options(model: type[BaseModel], *, default: BaseModel | None = None, prefix: str = "") -> list[Option]:
    """List the fields of a configuration, those of sub-models included, each once."""
    found: dict[str, Option] = {}
    for name, field in model.model_fields.items():
        value = getattr(default, name, None if field.is_required() else field.get_default(call_default_factory=True))
        models = sub_models(field)
        if not models:
            found[prefix + name] = Option(prefix + name, field, value)
        for member in models:
            own = value if isinstance(value, member) else None
            for option in list_options(member, default=own, prefix=f"{prefix}{name}."):
                kinds = (kind_of(member),) if len(models) > 1 else option.kinds
                known = found.get(option.path)
                if known is not None:
                    kinds, option = known.kinds + kinds, option if own is not None else known
                found[option.path] = Option(option.path, option.field, option.default, kinds)
    return list(found.values())


def sub_models(field: FieldInfo) -> list[type[BaseModel]]:
    """Models of which a field holds one: none for a plain value, several for a part that is chosen."""
    members = get_args(field.annotation) or (field.annotation,)
    return [t for t in members if isinstance(t, type) and issubclass(t, BaseModel)]


def kind_of(model: type[BaseModel]) -> str:
    """By which name a part is chosen."""
    return str(model.model_fields[DISCRIMINATOR].default)


def explain(error: ValidationError, config_class: type[BaseModel], *, given: Collection[str], base: str) -> str:
    """Tell every wrong field, its value and what was expected, in one line.

    Options in ``given`` were given one by one; ``base`` is where all other values come from, if anywhere.
    """
    lines = []
    for item in error.errors(include_url=False):
        where, _, _ = _locate(item["loc"], config_class)
        is_from_base = base and where and item["type"] != "missing" and not any(g.startswith(where) for g in given)
        lines.append(_explain(dict(item), config_class) + (f" (in {base})" if is_from_base else ""))
    return "; ".join(dict.fromkeys(lines))


def _explain(item: dict[str, Any], config_class: type[BaseModel]) -> str:
    where, kind, models = _locate(item["loc"], config_class)
    expected = _expectation(item)
    if item["type"] == "too_long" or (item["type"] == "missing" and isinstance(item["loc"][-1], int)):
        field = models[0].model_fields[where.rpartition(".")[2]]
        return f"{where}={_shown(item['input'])} must be {len(get_args(field.annotation))} values, such as 1,2"
    if item["type"] == "missing":
        return f"{where} is required: give --{where}, or a --preset"
    if item["type"] == "extra_forbidden":
        return _explain_extra(where, kind, models, config_class)
    if item["type"].startswith("union_tag"):
        given = item["input"].get(DISCRIMINATOR)
        kinds = [kind_of(m) for m in models]
        near = closest_word(str(given), kinds)
        said = f"{where}.{DISCRIMINATOR}={given!r} must be" if given else f"{where}.{DISCRIMINATOR} must say"
        return f"{said} one of {', '.join(kinds)}" + (f"; did you mean {near!r}?" if near else "")
    if not where or (item["type"] == "value_error" and isinstance(item["input"], dict)):
        return expected
    return f"{where}={_shown(item['input'])} {expected}"


def _locate(loc: tuple[Any, ...], config_class: type[BaseModel]) -> tuple[str, str | None, list[type[BaseModel]]]:
    """Dotted name of a place in a configuration, the kind chosen on the way, and the models it was looked up in."""
    names: list[str] = []
    kind, models = None, [config_class]
    is_leaf = False  # behind a field of plain values pydantic names the kinds that it tried
    for part in loc:
        if is_leaf:
            continue
        if len(models) > 1 and part in [kind_of(m) for m in models]:
            kind, models = part, [m for m in models if kind_of(m) == part]
        elif isinstance(part, str):
            names.append(part)
            field = models[0].model_fields.get(part) if models else None
            is_leaf = field is not None and not sub_models(field)
            models = (sub_models(field) or models) if field is not None else models
    return ".".join(names), kind, models


def _explain_extra(where: str, kind: str | None, models: list[type[BaseModel]], config_class: type[BaseModel]) -> str:
    options = list_options(config_class)
    part = where.rpartition(".")[0]
    others = next((option.kinds for option in options if option.path == where), ())
    if kind is not None and others:
        takes = [f"{part}.{name}" for name in models[0].model_fields if name != DISCRIMINATOR]
        return f"{where} goes with {part}.{DISCRIMINATOR}={' or '.join(others)}, not with {kind}, which takes " + (
            ", ".join(takes) or "nothing else"
        )
    near = closest_word(where, [option.path for option in options])
    return f"{where} is no known field" + (f"; did you mean {near}?" if near else "")


def _shown(value: Any) -> str:
    shown = _as_given(value)
    return shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}... ({len(shown)} characters)"


def _as_given(value: Any) -> str:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return repr(value)
        return value.strip()
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return repr(value)


def _expectation(item: dict[str, Any]) -> str:
    context, kind = item.get("ctx", {}), item["type"]
    words = WANTED.get(kind) or WANTED.get(kind.partition("_")[0])
    if words is not None:
        return f"must be {words.format(**context)}"
    match kind:
        case "less_than_equal":
            most = context["le"]
            is_shown_whole = most < 10**15 and most == int(most)
            return f"must be at most {int(most):,}" if is_shown_whole else f"must be at most {most:,g}"
        case "literal_error":
            choices = context["expected"]
            words = choices.replace("'", "").replace(" or ", ", ").split(", ")
            near = closest_word(str(item["input"]), words, at_least=0.7)
            return f"must be {choices}" + (f"; did you mean {near!r}?" if near else "")
        case "value_error":
            return str(context["error"])
        case _:
            message = str(item["msg"])
            return (message[:1].lower() + message[1:]).replace("input should", "must")
