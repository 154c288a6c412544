"""Command line of evaluation: protocols, an encoder, and dotted options."""

import datetime
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console

from ssl_blocks.cli.arguments import list_options, pair_options, sub_models
from ssl_blocks.cli.command import WRONG_WISH, fail, parse_config
from ssl_blocks.cli.helptext import WIDEST, meaning_of, option_row, option_table
from ssl_blocks.data import ImageData, load
from ssl_blocks.encoders.card import write_card
from ssl_blocks.engine.devices import choose_device
from ssl_blocks.engine.settings import section
from ssl_blocks.evaluate.checks import check_fit, check_numbers
from ssl_blocks.evaluate.config import EvaluateConfig
from ssl_blocks.evaluate.processes import connected, share_of_torchrun
from ssl_blocks.evaluate.results import add_entry, read_results, results_table
from ssl_blocks.evaluate.rows import (
    FROZEN,
    TASKS,
    Row,
    Setup,
    finetuned_rows,
    frozen_rows,
    load_masks,
    merge_rows,
    segmented_rows,
)
from ssl_blocks.evaluate.subject import Subject, find_subject, run_of
from ssl_blocks.pretrain.resume import stored_config
from ssl_blocks.program import as_typed

INHERITED = ("name", "root", "max_train", "max_test", "max_memory_gib")  # of a run's data


def main(argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Evaluate an encoder from the command line and return the exit code.

    Options, data and the fit of both are looked at before anything is computed. A mistake is one line on standard
    error and exit code 2; no file is touched then.

    Args:
        argv: arguments; ``None`` takes the process's own.
        program: what the user typed in front of them; ``None``: the program's name.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        tasks, word, options = split_arguments(given)
        if "help" in options or not given:
            print(help_text(program or as_typed()), end="")
            return 0
        _check_words(tasks, word)
        assert word is not None
        config = configure(word, options)
        path = _results_path(word, config)
        if path is not None:
            read_results(path)  # refuses a file of something else
        share = share_of_torchrun(tasks)
        setup = prepare(tasks, word, config, Console(stderr=True, quiet=share.rank > 0))
        started = time.perf_counter()
        with connected(share, setup.device) as device:
            setup = replace(setup, share=share, device=device)
            rows = evaluate(setup, tasks)
        if share.rank == 0:
            entry = make_entry(setup, tasks, word, given, rows, seconds=time.perf_counter() - started)
            _report(setup, tasks, rows, entry, path)
    except (ValueError, TypeError, OSError, ImportError) as mistake:
        return fail(mistake, WRONG_WISH)
    return 0


def _report(
    setup: Setup, tasks: Sequence[str], rows: Sequence[Row], entry: Mapping[str, Any], path: Path | None
) -> None:
    console, run = Console(), setup.subject.folder
    console.print(results_table(_title(setup, tasks), rows))  # first: a full disk does not cost the numbers
    if path is None:
        console.print("no file was written: give --output FILE to keep the results")
        return
    add_entry(path, entry)
    console.print(f"added to {path}", soft_wrap=True)
    if run is not None and path == run / "results.json":
        console.print(f"and to {write_card(run)}", soft_wrap=True)


def split_arguments(argv: Sequence[str]) -> tuple[list[str], str | None, dict[str, str | None]]:
    """Tell apart protocols, encoder and options.

    Raises:
        ValueError: if an option is unknown or given twice, or there are several encoders.
    """
    count = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
    words = list(argv[:count])
    tasks = [word for word in words if word in TASKS]
    others = [word for word in words if word not in TASKS]
    options = pair_options(argv[count:], [option.path for option in list_options(EvaluateConfig)], switches=("help",))
    if len(others) > 1:
        raise ValueError(f"{' '.join(others)}: give one encoder; the protocols are {', '.join(TASKS)}")
    return list(dict.fromkeys(tasks)), others[0] if others else None, options


def _check_words(tasks: Sequence[str], word: str | None) -> None:
    if not tasks:
        raise ValueError(f"say what to evaluate by: one or several of {', '.join(TASKS)}")
    if word is None:
        raise ValueError(
            f"{' '.join(tasks)}: say what to evaluate: the folder of a run or of an encoder, or a timm model"
        )


def configure(word: str, options: Mapping[str, str | None]) -> EvaluateConfig:
    """Build the configuration: of a run, data and seed are known.

    Raises:
        ValueError: naming every wrong field, its value and what was expected.
    """
    overrides = {}
    for name, value in options.items():
        if value is None:
            raise ValueError(f"--{name} needs a value: --{name} VALUE")
        overrides[name] = value
    base: dict[str, Any] = {}
    run = run_of(word)
    if run is not None:
        known = stored_config(run)
        data = {name: value for name, value in known.get("data", {}).items() if name in INHERITED}
        if "data.name" in overrides:  # sizes of another data set mean nothing
            data = {name: value for name, value in data.items() if not name.startswith("max_t")}
        base = {"seed": known.get("seed", 0), "data": data}
    return parse_config(EvaluateConfig, overrides, base=base, source=f"run {run}")


def prepare(tasks: Sequence[str], word: str, config: EvaluateConfig, console: Console) -> Setup:
    """Load encoder and data, and see that they fit.

    Raises:
        FileNotFoundError: if a folder, its configuration or data is missing.
        ValueError: if labels are missing, or the encoder cannot take the images.
        TypeError: if what was given is no encoder.
    """
    device, autocast_dtype = choose_device(config.device, config.precision)
    check_numbers(config)
    subject = find_subject(word, image_size=config.image_size, pretrained=config.pretrained)
    data = _load(subject, config) if set(tasks) - {"segment"} else None
    setup = Setup(subject, data, config, device, autocast_dtype, lambda text: console.print(text, style="dim"))
    check_fit(setup, tasks)
    return replace(setup, masks=load_masks(setup)) if "segment" in tasks else setup


def _load(subject: Subject, config: EvaluateConfig) -> ImageData:
    settings = config.data
    if settings.name is None:
        raise ValueError(f"data.name is required, for {subject.name} comes from no run: give --data.name")
    size = subject.image_size
    with section("data"):
        data = load(
            settings.name,
            image_size=size[0] if size is not None and size[0] == size[1] else None,
            channels=subject.encoder.channels,
            root=settings.root,
            max_train=settings.max_train,
            max_test=settings.max_test,
            seed=config.seed,
            max_bytes=int(settings.max_memory_gib * 2**30),
        )
        return _labelled_part(data)


def _labelled_part(data: ImageData) -> ImageData:
    if data.test is None:
        raise ValueError(f"name={data.name!r} has no test images to score on")
    for name, split in (("training", data.train), ("test", data.test)):
        if split.labels is None or not bool((split.labels >= 0).any()):
            raise ValueError(
                f"name={data.name!r} has no labels of its {name} images, and every protocol needs them: give class "
                "folders (imagefolder:PATH) or another data set"
            )
    if any(bool((split.labels < 0).any()) for split in (data.train, data.test) if split.labels is not None):
        return data.sample()  # some images have none, as most of STL-10
    return data


def evaluate(setup: Setup, tasks: Sequence[str]) -> list[Row]:
    """Score an encoder by protocols.

    Args:
        setup: out of `prepare`.
        tasks: some of ``TASKS``.

    Raises:
        ValueError: if the encoder cannot take the images, features are not finite, or a protocol refuses.
    """
    rows = []
    frozen = [task for task in FROZEN if task in tasks]
    if frozen:
        rows += frozen_rows(setup, frozen)
    trained = [task for task in ("finetune", "fewshot") if task in tasks]
    if "finetune" in trained or (trained and setup.config.fewshot.finetune):
        rows += finetuned_rows(setup, trained if setup.config.fewshot.finetune else ["finetune"])
    if "segment" in tasks:
        rows += segmented_rows(setup)
    return merge_rows(rows)


def make_entry(
    setup: Setup, tasks: Sequence[str], word: str, argv: Sequence[str], rows: Sequence[Row], *, seconds: float
) -> dict[str, Any]:
    """All that is needed to judge the numbers, and to make them again."""
    config, subject = setup.config, setup.subject
    settings = config.model_dump(mode="json")
    data = setup.data
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["evaluate.py", *argv]),
        "encoder": word,
        "features": subject.pooling,
        "image_size": None if subject.image_size is None else list(subject.image_size),
        "data": None
        if data is None
        else {"name": data.name, "train": len(data.train), "test": 0 if data.test is None else len(data.test)},
        "settings": {name: settings[name] for name in ("seed", *tasks)},
        "device": setup.device,
        "autocast_dtype": None if setup.autocast_dtype is None else str(setup.autocast_dtype),
        "versions": {"ssl_blocks": version("ssl_blocks"), "torch": torch.__version__, "timm": timm.__version__},
        "seconds": round(seconds, 1),
        "scores": [{"name": row.name, **row.scores} for row in rows],
    }


def _results_path(word: str, config: EvaluateConfig) -> Path | None:
    run = run_of(word)
    return config.output or (None if run is None else run / "results.json")


def _title(setup: Setup, tasks: Sequence[str]) -> str:
    names = [setup.data.name] if setup.data is not None else []
    names += [setup.config.segment.data] if "segment" in tasks else []
    return f"{setup.subject.name}: accuracy on test images of {' and '.join(names)}"


def help_text(call: str, *, width: int | None = None) -> str:
    """Explain the command line.

    Args:
        call: what the user typed in front of the arguments.
        width: columns; ``None`` takes the terminal's.
    """
    width = min(shutil.get_terminal_size().columns, WIDEST) if width is None else width
    what = [
        ("knn", "nearest neighbours"),
        ("probe", "linear probe on all labels"),
        ("fewshot", "linear probe on few labels per class"),
        ("finetune", "train encoder and head on all labels"),
        ("segment", "train a pyramid and a head on images and masks"),
    ]
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
    ]
    options, nested = list_options(EvaluateConfig), {}
    for name, field in EvaluateConfig.model_fields.items():
        if sub_models(field):
            nested[name] = sub_models(field)
    groups = [("general:", [option for option in options if "." not in option.path])]
    for name, models in nested.items():
        members = [option for option in options if option.path.startswith(f"{name}.")]
        groups.append((f"{name}: {meaning_of(EvaluateConfig.model_fields[name], models)}", members))
    sections += [option_table(title, [option_row(o, nested) for o in members], width) for title, members in groups]
    note = "Lists are written 2,4; true and false are spelled out; None puts a value back to its default meaning."
    sections.append(textwrap.fill(note, width))
    return "\n\n".join(sections) + "\n"
