"""One evaluation: what is asked is looked at, computed, shown and written down."""

import datetime
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console

from ssl_blocks.data import ImageData, load
from ssl_blocks.encoders.card import write_card
from ssl_blocks.engine.devices import choose_device
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.settings import section, values_of
from ssl_blocks.evaluate.cli import Wish
from ssl_blocks.evaluate.pictures import draw_pictures
from ssl_blocks.evaluate.results import Rows, add_entry, read_results, results_table
from ssl_blocks.evaluation.labelled import Labelled
from ssl_blocks.evaluation.protocol import CannotScoreError, Protocol, Score
from ssl_blocks.evaluation.protocols import PROTOCOLS
from ssl_blocks.evaluation.sharing import Share, connected, share_of_torchrun
from ssl_blocks.evaluation.subject import Subject, find_subject, run_of
from ssl_blocks.files import check_output
from ssl_blocks.program import VERSION
from ssl_blocks.text import terminal

MOST_PIXEL_VALUES = 2**30  # 4 GiB in single precision


class Skipped:
    """Scores that cannot be computed of this data: each is said, and noted."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.entries: list[dict[str, str]] = []

    def note(self, protocol: Protocol[Any, Any], reason: CannotScoreError, name: str = "") -> None:
        """Say that a protocol was left out, of a row or altogether."""
        words = " ".join(str(reason).split())
        self.say(f"skipped: {f'{name}: ' if name else ''}{protocol.name}: {words}")
        self.entries.append({"protocol": protocol.name, "name": name, "reason": words})

    def check(self, is_any: bool) -> None:
        """End with exit code 1 where nothing was scored."""
        if not is_any:
            reasons = "; ".join(dict.fromkeys(f"{entry['protocol']}: {entry['reason']}" for entry in self.entries))
            raise RunStopped(f"nothing can be scored: {reasons}", exit_code=1)


@dataclass(frozen=True, eq=False)
class Setup:
    """What is evaluated by which protocols, each on data of its own, in the order of the table."""

    subject: Subject
    protocols: tuple[Protocol[Any, Any], ...]
    data: tuple[Any, ...]
    config: Any
    say: Callable[[str], None]
    skipped: Skipped

    @property
    def images(self) -> Labelled | None:
        """The labelled images, where a protocol asks on some."""
        return next((data for data in self.data if isinstance(data, Labelled)), None)


def run(wish: Wish, word: str, config: Any) -> None:
    """Evaluate, show the table, add an entry to the file of results, and write the model card anew.

    Raises:
        ValueError: if something does not fit, features are not finite, or a protocol refuses.
        TypeError: if what was named is no encoder.
        OSError: if a folder, its configuration or data is missing, or results cannot be written.
    """
    folder, share = run_of(word), share_of_torchrun()
    path = config.output or (None if folder is None else folder / "results.json")
    if config.output is not None:
        with section("output"):
            check_output(config.output)
    if path is not None:
        read_results(path)  # refuses a file of something else
    setup = prepare(wish, word, config, terminal(stderr=True, quiet=share.rank > 0), share)
    started = time.perf_counter()
    with connected(share, str(setup.subject.extractor.device)):
        rows, drawn = evaluate(setup, None if share.world > 1 else path)
    if share.rank == 0:
        entry = make_entry(setup, wish, rows, seconds=time.perf_counter() - started)
        _report(setup, rows, entry | {"pictures": [str(file) for file in drawn]}, path)


def prepare(wish: Wish, word: str, config: Any, console: Console, share: Share) -> Setup:
    """Load encoder and data, and see that all fits: errors are those of `run`."""
    device, dtype = choose_device(config.device, config.precision)
    say = partial(console.print, style="dim", soft_wrap=True)
    skipped = Skipped(say)
    context = {"seed": config.seed, "say": say, "share": share}
    protocols = [protocol for kind in wish.asked for protocol in kind.configured(config, **context)]
    alone = [protocol.name for protocol in protocols if not protocol.is_shared]
    if share.world > 1 and alone:
        able = " and ".join(kind.name for kind in PROTOCOLS if kind.is_shared)
        raise ValueError(
            f"{' '.join(alone)} cannot share work between {share.world} processes, only {able} can: start it without "
            "torchrun"
        )
    subject = find_subject(
        word, image_size=config.image_size, pretrained=config.pretrained, device=share.device(device), dtype=dtype
    )
    _check_attention(subject, protocols, config)

    load_images = cache(partial(_load, subject, config))

    @cache
    def labelled() -> Labelled:
        images = load_images()
        try:
            return Labelled.of(images)
        except CannotScoreError as reason:
            raise CannotScoreError(f"data: {reason}") from None

    data: dict[Protocol[Any, Any], Any] = {}
    for protocol in protocols:
        try:
            data[protocol] = protocol.load(subject, labelled)
        except CannotScoreError as reason:
            skipped.note(protocol, reason)
    if any(isinstance(item, Labelled) for item in data.values()):
        subject = subject.normalised(load_images().mean, load_images().std)
        subject.extractor.check(labelled().train.shape)
    for protocol, item in list(data.items()):
        try:
            protocol.check(subject, item)
        except CannotScoreError as reason:
            skipped.note(protocol, reason)
            del data[protocol]
    skipped.check(bool(data))
    return Setup(subject, tuple(data), tuple(data.values()), config, say, skipped)


def _check_attention(subject: Subject, protocols: Sequence[Protocol[Any, Any]], config: Any) -> None:
    if config.attention == "bidirectional":
        return
    if not any(protocol.is_frozen for protocol in protocols):
        names = " ".join(protocol.name for protocol in protocols)
        raise ValueError(f"attention={config.attention!r} is for protocols that leave the encoder frozen, not {names}")
    subject.under("causal")  # refuses an encoder that takes no mask


def _load(subject: Subject, config: Any) -> ImageData:
    settings, size = config.data, subject.image_size
    if settings.name is None:
        raise ValueError(f"data.name is required, for {subject.name} comes from no run: give --data.name")
    own = partial(
        load,
        settings.name,
        image_size=None if size is None else (size[0], size[1]),
        channels=len(subject.extractor.mean),
        seed=config.seed,
        max_bytes=int(settings.max_memory_gib * 2**30),
        **values_of(settings, "root", "max_train", "max_test", "corrupt"),
    )
    with section("data"):
        data = own(value_range=settings.value_range)
        known = subject.value_range
        if settings.value_range is None and data.value_range is not None and known not in (None, data.value_range):
            data = own(value_range=known)  # what is bright is as bright as in training
    return data


def evaluate(setup: Setup, path: Path | None = None) -> tuple[Rows, list[Path]]:
    """Score all there is to score, by name of the row and by protocol; and draw beside a file of results, if any.

    Pictures are of features that were made for a score.
    """
    drawn: list[Path] = []
    rows: dict[str, dict[str, Any]] = {}

    def note(name: str, protocol: Protocol[Any, Any], score: Score, **more: Any) -> None:
        rows.setdefault(name, {})[protocol.name] = {**score.values, "shown": score.shown, **more}

    by_data = dict(zip(setup.protocols, setup.data, strict=True))
    for protocol, data in by_data.items():
        for name, score in protocol.baselines(data).items():
            note(name, protocol, score)
    for subject, protocols in _asked(setup):
        for protocol in protocols:
            setup.say(f"{subject.name}: {protocol.name}")
            started = time.perf_counter()
            try:
                score = protocol.score(subject, by_data[protocol])
            except CannotScoreError as reason:
                setup.skipped.note(protocol, reason, subject.name)
                continue
            note(subject.name, protocol, score, seconds=round(time.perf_counter() - started, 2))
        is_drawn = setup.config.pictures and subject.name == setup.subject.name and subject.has_features
        if is_drawn and path is not None and setup.images is not None:
            drawn += draw_pictures(subject, setup.images, path, setup.say)
        subject.extractor.encoder.module.to("cpu")
    setup.skipped.check(bool(rows))
    return rows, drawn


def _asked(setup: Setup) -> Iterator[tuple[Subject, list[Protocol[Any, Any]]]]:
    """The subjects, one after the other, and what is asked of each."""
    config, subject = setup.config, setup.subject
    frozen = [protocol for protocol in setup.protocols if protocol.is_frozen]
    if config.pixels and frozen and setup.images is not None and _pixels_fit(setup, setup.images):
        yield subject.pixels(setup.images.train.shape), frozen
    at_random = [protocol for protocol in setup.protocols if protocol.with_random(config.random)]
    if at_random and subject.fresh is None:
        setup.say("random weights are left out: how to build this encoder anew is not known")
    elif at_random:
        yield from _readings(subject.randomly(config.seed), at_random, config.attention)
    yield from _readings(subject, setup.protocols, config.attention)


def _readings(
    subject: Subject, protocols: Sequence[Protocol[Any, Any]], attention: str
) -> Iterator[tuple[Subject, list[Protocol[Any, Any]]]]:
    """An encoder under the masks that were asked for, and last as it is trained."""
    frozen = [protocol for protocol in protocols if protocol.is_frozen]
    trained = [protocol for protocol in protocols if not protocol.is_frozen]
    if frozen and attention != "causal":
        yield replace(subject), frozen  # a copy: its features are forgotten with it
    if frozen and attention != "bidirectional":
        yield subject.under("causal"), frozen
    if trained:
        yield subject, trained


def _pixels_fit(setup: Setup, images: Labelled) -> bool:
    values = (len(images.train) + len(images.test)) * math.prod(images.train.shape)
    if values > MOST_PIXEL_VALUES:
        setup.say(f"raw pixels are left out: {values:,} values would fill the memory")
    return values <= MOST_PIXEL_VALUES


def make_entry(setup: Setup, wish: Wish, rows: Rows, *, seconds: float) -> dict[str, Any]:
    """All that is needed to judge the numbers, and to make them again."""
    subject, images, dtype = setup.subject, setup.images, setup.subject.extractor.dtype
    own = {protocol.name: protocol.settings.model_dump(mode="json") for protocol in setup.protocols}
    return {
        "date": datetime.date.today().isoformat(),
        "command": wish.command,
        "encoder": wish.word,
        "features": subject.pooling,
        "attention": setup.config.attention,
        "image_size": None if subject.image_size is None else list(subject.image_size),
        "data": None if images is None else {"name": images.name, "train": len(images.train), "test": len(images.test)},
        "settings": {"seed": setup.config.seed, **own},
        "device": str(subject.extractor.device),
        "autocast_dtype": None if dtype is None else str(dtype),
        "versions": {"ssl_blocks": VERSION, "torch": torch.__version__, "timm": timm.__version__},
        "seconds": round(seconds, 1),
        "scores": [{"name": name, **scores} for name, scores in rows.items()],
        "skipped": setup.skipped.entries,
    }


def _report(setup: Setup, rows: Rows, entry: dict[str, Any], path: Path | None) -> None:
    console, folder = terminal(), setup.subject.folder
    names = dict.fromkeys(str(getattr(data, "name", "")) for data in setup.data)
    title = f"{setup.subject.name}: accuracy on test images of {' and '.join(filter(None, names))}"
    console.print(results_table(title, rows, setup.protocols))  # first: a full disk does not cost the numbers
    if path is None:
        console.print("no file was written: give --output FILE to keep the results")
        return
    add_entry(path, entry)
    console.print(f"added to {path}", soft_wrap=True)
    for file in entry["pictures"]:
        console.print(f"  {file}", soft_wrap=True)
    if folder is not None and path == folder / "results.json":
        console.print(f"and to {write_card(folder)}", soft_wrap=True)
