"""What is evaluated: an encoder out of a folder, out of timm, or out of a user's own code."""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_blocks.bounds import Pixels, Positive, Seed
from ssl_blocks.code import ELSEWHERE, import_named, is_code
from ssl_blocks.data import FileSplit
from ssl_blocks.doors import checked
from ssl_blocks.encoders import FeatureEncoder, TimmPooled, TimmRegions, TokenEncoder, load_encoder, untrained, wrap
from ssl_blocks.encoders.timm_building import placed
from ssl_blocks.encoders.timm_models import knows_size
from ssl_blocks.evaluation.extract import Attention, Extractor, RawPixels
from ssl_blocks.evaluation.labelled import Labelled, read_images
from ssl_blocks.evaluation.protocol import RANDOM
from ssl_blocks.evaluation.sharing import Share
from ssl_blocks.evaluation.tokenizers import rebuild_tokenizer
from ssl_blocks.files import at_home
from ssl_blocks.modes import without_weights
from ssl_blocks.parts.tokenize import PatchTokenizer, Tokenizer

NEUTRAL = 0.5


class Features(NamedTuple):
    """Features and labels of both splits, or of one process's share of them."""

    train: Float[Tensor, "n d"]
    train_labels: Int[Tensor, " n"]
    test: Float[Tensor, "m d"]
    test_labels: Int[Tensor, " m"]


@checked
@dataclass(frozen=True, eq=False)
class Subject:
    """What is evaluated: a row of the table.

    Args:
        name: what it is called in tables.
        extractor: makes its features.
        image_size: of its input in pixels, height and width; ``None`` where any will do and none is known.
        folder: of the run that it comes from; ``None`` for other encoders.
        fresh: builds the same encoder with random weights from a seed; ``None`` where that is not known.
        value_range: which values of images of more than 8 bits its training had as black and white; ``None``: unknown.
        knows_statistics: whether mean and deviation are its own; else those of the data take their place.
    """

    name: str
    extractor: Extractor
    image_size: tuple[Pixels, ...] | None = None
    folder: Path | None = None
    fresh: Callable[[int], FeatureEncoder] | None = None
    value_range: tuple[float, float] | None = None
    knows_statistics: bool = True
    _kept: dict[Share, Features] = field(default_factory=dict, init=False, repr=False)

    @property
    def has_features(self) -> bool:
        """Whether features were made and kept, of this process's share of the images."""
        return bool(self._kept)

    @property
    def pooling(self) -> str:
        """How features come about."""
        return str(getattr(self.extractor.encoder, "pooling", "mean of normalised patch tokens"))

    def features(self, data: Labelled, share: Share | None = None) -> Features:
        """Features of the images, of this process's share of them, made once and kept: a subject meets one data set."""
        share = share or Share()
        if share not in self._kept:
            self._kept[share] = Features(*self._extract(data, share))
        return self._kept[share]

    def _extract(self, data: Labelled, share: Share) -> Iterator[Tensor]:
        for split, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
            places = torch.tensor(share.of(len(split)))
            whole = {} if isinstance(split, FileSplit) else {"chunk": len(split)}  # what is in memory needs no chunks
            yield self.extractor.of_parts(read_images(split, places, **whole))
            yield labels[places]

    def normalised(self, mean: Sequence[float], std: Sequence[Positive]) -> "Subject":
        """The same with the data's mean and deviation, unless it has its own."""
        if self.knows_statistics:
            return self
        return replace(self, extractor=replace(self.extractor, mean=tuple(mean), std=tuple(std)))

    def under(self, attention: Attention) -> "Subject":
        """The same, encoding under a mask; ``ValueError`` if its encoder takes none."""
        name = self.name if attention == "bidirectional" else f"{self.name}, {attention}"
        return replace(self, name=name, extractor=replace(self.extractor, attention=attention))

    def randomly(self, seed: Seed) -> "Subject":
        """The same encoder with random weights of a seed."""
        assert self.fresh is not None
        return replace(self, name=RANDOM, extractor=replace(self.extractor, encoder=self.fresh(seed)))

    def pixels(self, shape: tuple[int, int, int]) -> "Subject":
        """What it is given, as features: normalised images of a shape (channels, height, width)."""
        raw = RawPixels(channels=shape[0], size=(shape[1], shape[2]))
        extractor = replace(self.extractor, encoder=raw, tokenizer=None, attention="bidirectional")
        return replace(self, name="raw pixels", extractor=extractor, fresh=None)


@checked
def find_subject(
    word: str,
    *,
    image_size: Pixels | None = None,
    pretrained: bool = True,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Subject:
    """Find an encoder by what a user writes.

    Args:
        word: folder of a run, folder of an exported encoder, name of a timm model, or ``MODULE:FUNCTION``: a function
            without arguments in a module that can be imported from here, which returns a model or an adapter.
        image_size: input size in pixels; ``None`` keeps the encoder's own.
        pretrained: whether a timm name stands for its weights.
        device: where it will run.
        dtype: its precision under autocast; ``None`` switches autocast off.

    Raises:
        FileNotFoundError: if a folder holds no exported encoder.
        ValueError: if it is none of these, weights cannot be had, or the encoder cannot take this size.
        TypeError: if what the function returned is no encoder.
    """
    path = at_home(word)
    if path.is_dir():
        found = _of_folder(path, image_size)
    elif is_code(word):
        found = _of_code(word, image_size)
    elif word.startswith(ELSEWHERE) or timm.is_model(word.partition(".")[0]):
        found = _of_timm(placed(word), image_size, pretrained=pretrained)
    else:
        near = difflib.get_close_matches(word, timm.list_models(), n=3)
        hint = f"; did you mean one of timm's {', '.join(near)}?" if near else ""
        raise ValueError(
            f"encoder={word!r} must be the folder of a run or of an exported encoder, the name of a timm model, or "
            f"MODULE:FUNCTION, but there is no such folder and no such model{hint}"
        )
    return replace(found, extractor=replace(found.extractor, device=device, dtype=dtype))


def run_of(word: str) -> Path | None:
    """The run's folder behind a word: itself, or the one that an ``encoder/`` folder lies in."""
    path = at_home(word)
    folders = [path, path.parent] if path.name == "encoder" else [path]
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def _of_folder(path: Path, image_size: int | None) -> Subject:
    run = run_of(str(path))
    folder = path
    if run == path:
        folder = path / "encoder"
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"encoder={str(path)!r} is a run without an exported encoder (no encoder/config.json): it writes one "
                f"at its end; go on with --resume {path}"
            )
    encoder = load_encoder(folder, image_size=image_size)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    notes = config.get("ssl_blocks", {})
    tokenizer = _tokenizer(notes, image_size)
    preprocessing = notes if "mean" in notes else config.get("pretrained_cfg", {})
    return _subject(
        (folder if run is None else run).resolve().name,
        encoder,
        preprocessing,
        tokenizer=tokenizer,
        image_size=_size_of(encoder, image_size, config.get("pretrained_cfg", {}), tokenizer),
        folder=run,
        fresh=lambda seed: untrained(folder, seed=seed, image_size=image_size),
    )


def _subject(
    name: str, encoder: FeatureEncoder, known: Mapping[str, Any], *, tokenizer: Tokenizer | None = None, **others: Any
) -> Subject:
    """A subject with the statistics that are known of its encoder, where they are for its number of channels."""
    mean, std = (tuple(known.get(name) or ()) for name in ("mean", "std"))
    # of images, where a tokenizer cuts them: what an encoder gets may have other channels
    fits = len(mean) == len(std) == (encoder.channels if tokenizer is None else len(mean) or None)
    if not fits:
        mean = std = (NEUTRAL,) * encoder.channels
    low_high = known.get("value_range")
    values = None if low_high is None else (float(low_high[0]), float(low_high[1]))
    return Subject(name, Extractor(encoder, mean, std, tokenizer), value_range=values, knows_statistics=fits, **others)


def _tokenizer(notes: dict[str, Any], image_size: int | None) -> Tokenizer | None:
    """Of pretraining, where whole images would not do: it left pixels out, or is another than the encoder's own."""
    note, size = notes.get("tokenizer"), notes.get("image_size")
    if note is None:
        return None
    whole = [g * p for g, p in zip(notes["grid"], notes["patch"], strict=False)]
    if note["name"] == f"{PatchTokenizer.__module__}:{PatchTokenizer.__name__}" and whole == size:
        return None
    if image_size is not None:
        images = f" of {'x'.join(map(str, size))}" if size else ""
        raise ValueError(
            f"image_size={image_size} must be left out: this encoder was pretrained on patches of "
            f"{'x'.join(map(str, notes['patch']))} pixels, cut out of images{images}"
        )
    return rebuild_tokenizer(note)


def _of_timm(word: str, image_size: int | None, *, pretrained: bool) -> Subject:
    takes_size = True
    if image_size is not None and not word.startswith(ELSEWHERE):
        with without_weights():
            takes_size = knows_size(timm.create_model(word))

    def build(load: bool, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            arguments: dict[str, Any] = {"num_classes": 0}
            if image_size is not None and takes_size:
                arguments["img_size"] = image_size
            return timm.create_model(word, pretrained=load, **arguments).eval()

    try:
        module = build(pretrained)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        hint = " (--pretrained false evaluates random weights)" if pretrained and not word.startswith(ELSEWHERE) else ""
        raise ValueError(
            f"encoder={word!r} cannot be had from timm{' with its weights' if pretrained else ''}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{hint}"
        ) from error
    encoder = adapt(module)
    if isinstance(encoder, TokenEncoder) and image_size is not None and _built_for(encoder) != (image_size, image_size):
        raise ValueError(
            f"image_size={image_size} must be a positive multiple of the patch of {word}, "
            f"{encoder.patch[0]}x{encoder.patch[1]} pixels"
        )
    return _subject(
        word,
        encoder,
        _timm_notes(encoder),
        image_size=_size_of(encoder, image_size, _timm_notes(encoder)),
        fresh=(lambda seed: adapt(build(False, seed))) if pretrained else None,
    )


def adapt(module: nn.Module) -> FeatureEncoder:
    """Show a timm model as an encoder: of tokens if it can be one, of regions, or as it pools by itself."""
    for kind in (wrap, TimmRegions):
        try:
            return kind(module)
        except (TypeError, ValueError):
            continue
    return TimmPooled(module)


def _of_code(word: str, image_size: int | None) -> Subject:
    if image_size is not None:
        raise ValueError(f"image_size={image_size} must be left out for {word!r}: the function decides")
    try:
        make = import_named(word)
    except ValueError as error:
        raise ValueError(f"encoder={error}") from error
    made = make()
    encoder = made if isinstance(made, FeatureEncoder) else None
    if encoder is None and isinstance(made, nn.Module):
        encoder = adapt(made) if hasattr(made, "pretrained_cfg") else wrap(made)
    if encoder is None:
        raise TypeError(
            f"encoder={word!r} must return a model or an adapter with module, dim, channels and features, got "
            f"{type(made).__name__}"
        )
    encoder.module.eval()
    return _subject(word, encoder, _timm_notes(encoder), image_size=_size_of(encoder))


def _timm_notes(encoder: FeatureEncoder) -> dict[str, Any]:
    """What timm notes of a model: its input size, mean and deviation."""
    return dict(getattr(encoder.module, "pretrained_cfg", None) or {})


def _size_of(
    encoder: FeatureEncoder,
    image_size: int | None = None,
    known: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
) -> tuple[int, ...] | None:
    """What was asked for, what pretraining had, what the encoder is built for, or what timm knows of it."""
    if image_size is not None:
        return image_size, image_size
    if tokenizer is not None:
        return getattr(tokenizer, "image_size", None)
    own = (known or {}).get("input_size")
    return _built_for(encoder) if isinstance(encoder, TokenEncoder) else None if own is None else (own[1], own[2])


def _built_for(encoder: TokenEncoder) -> tuple[int, ...]:
    return tuple(g * p for g, p in zip(encoder.grid.sizes, encoder.patch, strict=True))
