"""What is evaluated: an encoder out of a folder, out of timm, or out of a user's own code."""

import difflib
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ssl_blocks.encoders import FeatureEncoder, TimmPooled, TimmRegions, TokenEncoder, load_encoder, untrained, wrap
from ssl_blocks.parts.tokenize import PatchTokenizer, Tokenizer

HALF = 0.5


@dataclass(frozen=True, eq=False)
class Subject:
    """An encoder, and all that is known of how to feed it.

    Args:
        name: what it is called in tables.
        encoder: in evaluation mode, on the CPU.
        tokenizer: cuts the images as pretraining did, where it leaves pixels out.
        image_size: height and width of its input in pixels; ``None`` where any will do and none is known.
        mean: per channel on the 0..1 scale; ``None`` means that of the data.
        std: likewise.
        folder: of the run that it comes from; ``None`` for other encoders.
        fresh: builds the same encoder with random weights from a seed; ``None`` where that is not known.
    """

    name: str
    encoder: FeatureEncoder
    tokenizer: Tokenizer | None
    image_size: tuple[int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    folder: Path | None
    fresh: Callable[[int], FeatureEncoder] | None

    @property
    def pooling(self) -> str:
        """How features come about."""
        return str(getattr(self.encoder, "pooling", "mean of normalised patch tokens"))


def find_subject(word: str, *, image_size: int | None = None, pretrained: bool = True) -> Subject:
    """Find an encoder by what a user writes.

    Args:
        word: folder of a run, folder of an exported encoder, name of a timm model, or ``MODULE:FUNCTION``: a function
            without arguments in a module that can be imported from here, which returns a model or an adapter.
        image_size: input size in pixels; ``None`` keeps the encoder's own.
        pretrained: whether a timm name stands for its weights.

    Raises:
        FileNotFoundError: if a folder holds no exported encoder.
        ValueError: if it is none of these, weights cannot be had, or the encoder cannot take this size.
        TypeError: if what the function returned is no encoder.
    """
    path = Path(word).expanduser()
    if path.is_dir():
        return _of_folder(path, image_size)
    module, colon, function = word.partition(":")
    if colon and not timm_source(word) and "/" not in module:
        return _of_code(word, module, function, image_size)
    if timm_source(word) or timm.is_model(word.partition(".")[0]):
        return _of_timm(word, image_size, pretrained=pretrained)
    near = difflib.get_close_matches(word, timm.list_models(), n=3)
    hint = f"; did you mean one of timm's {', '.join(near)}?" if near else ""
    raise ValueError(
        f"encoder={word!r} must be the folder of a run or of an exported encoder, the name of a timm model, or "
        f"MODULE:FUNCTION, but there is no such folder and no such model{hint}"
    )


def run_of(word: str) -> Path | None:
    """The run's folder behind a word: itself, or the one that an ``encoder/`` folder lies in."""
    path = Path(word).expanduser()
    for folder in (path, path.parent):
        inside = folder / "encoder" if folder == path else path
        if (folder / "config.yaml").is_file() and (folder == path or inside.name == "encoder"):
            return folder
    return None


def timm_source(word: str) -> bool:
    """Whether timm would look for a model elsewhere than among its own."""
    return word.startswith(("hf-hub:", "hf_hub:", "local-dir:"))


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
    statistics = [tuple(preprocessing[name]) if name in preprocessing else None for name in ("mean", "std")]
    own = config.get("pretrained_cfg", {}).get("input_size")
    size = _pair(image_size) or _size_of(encoder, tokenizer) or (None if own is None else tuple(own[1:]))
    return Subject(
        name=(folder if run is None else run).resolve().name,
        encoder=encoder,
        tokenizer=tokenizer,
        image_size=size,
        mean=statistics[0],
        std=statistics[1],
        folder=run,
        fresh=lambda seed: untrained(folder, seed=seed, image_size=image_size),
    )


def _tokenizer(notes: dict[str, Any], image_size: int | None) -> Tokenizer | None:
    """Of pretraining, where whole images would not do: it left pixels out."""
    size, grid, patch = (notes.get(name) or () for name in ("image_size", "grid", "patch"))
    if not (size and grid and patch) or [g * p for g, p in zip(grid, patch, strict=True)] == size:
        return None
    if image_size is not None:
        raise ValueError(
            f"image_size={image_size} must be left out: this encoder was pretrained on patches of "
            f"{patch[0]}x{patch[1]} pixels, cut out of images of {size[0]}x{size[1]}"
        )
    return PatchTokenizer.from_grid(
        image_size=(size[0], size[1]), grid=(grid[0], grid[1]), channels=notes["channels"], crop=notes["crop"]
    )


def _of_timm(word: str, image_size: int | None, *, pretrained: bool) -> Subject:
    def build(load: bool, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            arguments: dict[str, Any] = {"num_classes": 0}
            if image_size is not None and _takes_size(word):
                arguments["img_size"] = image_size
            return timm.create_model(word, pretrained=load, **arguments).eval()

    try:
        module = build(pretrained)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"encoder={word!r} cannot be had from timm{' with its weights' if pretrained else ''}: "
            f"{type(error).__name__}: {reason}"
            + (" (--pretrained false evaluates random weights)" if pretrained and not timm_source(word) else "")
        ) from error
    encoder = adapt(module)
    built = _size_of(encoder, None)
    if image_size is not None and built not in (None, (image_size, image_size)):
        assert isinstance(encoder, TokenEncoder)
        raise ValueError(
            f"image_size={image_size} must be a positive multiple of the patch of {word}, "
            f"{encoder.patch[0]}x{encoder.patch[1]} pixels"
        )
    own = dict(getattr(module, "pretrained_cfg", {})).get("input_size")
    mean, std = _statistics(encoder)
    return Subject(
        name=word,
        encoder=encoder,
        tokenizer=None,
        image_size=_pair(image_size) or _size_of(encoder, None) or (None if own is None else tuple(own[1:])),
        mean=mean,
        std=std,
        folder=None,
        fresh=(lambda seed: adapt(build(False, seed))) if pretrained else None,
    )


def _takes_size(word: str) -> bool:
    if timm_source(word):
        return True
    with torch.device("meta"):
        return "img_size" in inspect.signature(type(timm.create_model(word))).parameters


def adapt(module: nn.Module) -> FeatureEncoder:
    """Show a timm model as an encoder: of tokens if it can be one, of regions, or as it pools by itself."""
    try:
        return wrap(module)
    except (TypeError, ValueError):
        pass
    try:
        return TimmRegions(module)
    except (TypeError, ValueError):
        return TimmPooled(module)


def _of_code(word: str, module: str, function: str, image_size: int | None) -> Subject:
    if image_size is not None:
        raise ValueError(f"image_size={image_size} must be left out for {word!r}: the function decides")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"encoder={word!r} cannot be imported: {error}") from error
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
    mean, std = _statistics(encoder)
    return Subject(
        name=word,
        encoder=encoder,
        tokenizer=None,
        image_size=_size_of(encoder, None),
        mean=mean,
        std=std,
        folder=None,
        fresh=None,
    )


def _statistics(encoder: FeatureEncoder) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation that timm notes of a model, where they are for its number of channels."""
    known: dict[str, Any] = dict(getattr(encoder.module, "pretrained_cfg", None) or {})
    mean, std = (known.get(name) or () for name in ("mean", "std"))
    return (tuple(mean), tuple(std)) if len(mean) == len(std) == encoder.channels else (None, None)


def _size_of(encoder: FeatureEncoder, tokenizer: Tokenizer | None) -> tuple[int, int] | None:
    if isinstance(tokenizer, PatchTokenizer):
        return tokenizer.image_size
    if isinstance(encoder, TokenEncoder):
        return encoder.grid.height * encoder.patch[0], encoder.grid.width * encoder.patch[1]
    return None


def _pair(image_size: int | None) -> tuple[int, int] | None:
    return None if image_size is None else (image_size, image_size)
