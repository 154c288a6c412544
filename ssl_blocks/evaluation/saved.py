"""Trained models in folders: the encoder as it is exported, and beside it what was put on it."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ssl_blocks.bounds import Positive
from ssl_blocks.doors import checked
from ssl_blocks.encoders import FeatureEncoder, TokenEncoder, export_encoder, load_encoder
from ssl_blocks.encoders.hub import tokenizer_note
from ssl_blocks.evaluation.classifier import Classifier
from ssl_blocks.evaluation.pyramid import FeaturePyramid
from ssl_blocks.evaluation.segmentation import SegmentationModel, UPerHead
from ssl_blocks.evaluation.tokenizers import rebuild_tokenizer
from ssl_blocks.files import at_home, atomically, read_json
from ssl_blocks.parts.tokenize import Tokenizer

FORMAT_VERSION = 1
ENCODER, HEAD, NOTES = "encoder", "head.safetensors", "model.json"

M = TypeVar("M", bound=nn.Module)


@checked
@dataclass(frozen=True, eq=False)
class Loaded(Generic[M]):
    """A trained model in evaluation mode, and how its images are normalised, per channel on the 0..1 scale.

    ``class_names`` are by class, and empty where nobody gave them; ``value_range`` says which values of images of more
    than 8 bits are 0 and 1 on that scale, and is ``None`` where it was trained on 8 bits.
    """

    model: M
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    class_names: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None


@checked
def save_classifier(
    model: Classifier,
    folder: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[Positive],
    class_names: Sequence[str] = (),
    value_range: tuple[float, float] | None = None,
) -> Path:
    """Write a classifier: its encoder by `export_encoder` into ``encoder/``, ``head.safetensors`` and ``model.json``.

    Mean and std are one number per channel on the 0..1 scale, as in training, ``class_names`` and ``value_range`` as
    in `Loaded`. Other files in the folder stay.

    Raises:
        ValueError: if there are names of other classes than the head's.
        TypeError: if encoder or tokenizer cannot be built again.
    """
    notes = {"num_classes": model.num_classes, "fresh_norm": model.fresh_norm}
    images = {"mean": mean, "std": std, "class_names": class_names, "value_range": value_range}
    return _save(model, "backbone.", folder, model.encoder, model.tokenizer, notes, images)


@checked
def load_classifier(folder: str | Path) -> Loaded[Classifier]:
    """Load what `finetune_encoder` or `save_classifier` has written, with equal logits.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if they are no classifier, damaged, or do not fit each other.
    """
    folder = at_home(folder)
    notes = _notes(folder, "Classifier")
    arguments: dict[str, Any] = {name: notes[name] for name in ("num_classes", "fresh_norm")}
    tokenizer = None if notes["tokenizer"] is None else rebuild_tokenizer(notes["tokenizer"])
    model = Classifier(load_encoder(folder / ENCODER), tokenizer=tokenizer, **arguments)
    return _filled(model, "backbone.", folder, notes)


@checked
def save_segmenter(
    model: SegmentationModel,
    folder: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[Positive],
    class_names: Sequence[str] = (),
    value_range: tuple[float, float] | None = None,
) -> Path:
    """Write a segmentation model as `save_classifier` writes a classifier."""
    head, pyramid = model.head, model.pyramid
    width, levels = head.classify.in_channels, len(head.laterals) + 1
    notes = {
        "num_classes": model.num_classes,
        "pyramid": {"out_channels": pyramid.out_channels, "freeze": pyramid.freeze},
        "head": {"in_channels": pyramid.out_channels, "width": width, "num_levels": levels},
    }
    images = {"mean": mean, "std": std, "class_names": class_names, "value_range": value_range}
    return _save(model, "pyramid.encoder", folder, pyramid.encoder, None, notes, images)


@checked
def load_segmenter(folder: str | Path) -> Loaded[SegmentationModel]:
    """Load what `evaluate_segmentation` or `save_segmenter` has written, with equal logits.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if they are no segmentation model, damaged, or do not fit each other.
    """
    folder = at_home(folder)
    notes = _notes(folder, "SegmentationModel")
    encoder = load_encoder(folder / ENCODER)
    assert isinstance(encoder, TokenEncoder)
    head = UPerHead(num_classes=notes["num_classes"], **notes["head"])
    return _filled(
        SegmentationModel(FeaturePyramid(encoder, **notes["pyramid"]), head), "pyramid.encoder", folder, notes
    )


def check_savable(encoder: FeatureEncoder, tokenizer: Tokenizer | None) -> None:
    """Refuse by a ``TypeError`` what could not be saved once it is trained."""
    _describe(tokenizer)
    half = (0.5,) * encoder.channels
    with tempfile.TemporaryDirectory() as folder:
        export_encoder(encoder, Path(folder) / ENCODER, tokenizer=tokenizer, mean=half, std=half)


def _describe(tokenizer: Tokenizer | None) -> dict[str, Any] | None:
    note = tokenizer_note(tokenizer)
    if note is not None and note["arguments"] is None:
        raise TypeError(
            f"tokenizer must have describe and rebuild (StoredTokenizer) to be saved with a model, and {note['name']} "
            "has not"
        )
    return note


def _save(
    model: nn.Module,
    body: str,
    folder: str | Path,
    encoder: FeatureEncoder,
    tokenizer: Tokenizer | None,
    notes: dict[str, Any],
    images: dict[str, Any],
) -> Path:
    """Write the encoder, then all weights that are not below ``body``, then what tells that both are there."""
    names, classes = tuple(images["class_names"]), notes["num_classes"]
    if len(names) not in (0, classes):
        raise ValueError(f"class_names={names} must be {classes}, the classes of the head")
    notes = {"format_version": FORMAT_VERSION, "kind": type(model).__name__, **notes, "tokenizer": _describe(tokenizer)}
    notes |= {name: None if value is None else list(value) for name, value in images.items()}
    folder = at_home(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTES).unlink(missing_ok=True)
    export_encoder(
        encoder,
        folder / ENCODER,
        tokenizer=tokenizer,
        mean=tuple(images["mean"]),
        std=tuple(images["std"]),
        value_range=images["value_range"],
    )
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith(body)
    }
    with atomically(folder / HEAD) as temporary:
        temporary.touch()  # by which the file gets the permissions that others have
        mode = temporary.stat().st_mode
        save_file(state, temporary)
        temporary.chmod(mode)
    with atomically(folder / NOTES) as temporary:
        temporary.write_text(json.dumps(notes, indent=2) + "\n")
    return folder


def _notes(folder: Path, kind: str) -> dict[str, Any]:
    for name in (NOTES, HEAD):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"folder={str(folder)!r} must hold a trained model, but {name} is not in it")
    notes = read_json(folder / NOTES)
    found = (notes.get("kind"), notes.get("format_version"))
    if found != (kind, FORMAT_VERSION):
        raise ValueError(
            f"{folder / NOTES} must be of a {kind}, format {FORMAT_VERSION}, but is {found[0]}, {found[1]}"
        )
    return notes


def _filled(model: M, body: str, folder: Path, notes: dict[str, Any]) -> Loaded[M]:
    """Put in the weights of all but the encoder, which has its own."""
    try:
        found = model.load_state_dict(load_file(folder / HEAD), strict=False)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder / HEAD} holds no weights that fit: {reason}") from None
    wrong = [*found.unexpected_keys, *(name for name in found.missing_keys if not name.startswith(body))]
    if wrong:
        raise ValueError(f"{folder / HEAD} does not fit {NOTES}: {wrong[0]} is missing or too much ({len(wrong)} such)")
    low_high = notes["value_range"]
    names, values = tuple(notes["class_names"]), None if low_high is None else (low_high[0], low_high[1])
    return Loaded(model.eval(), tuple(notes["mean"]), tuple(notes["std"]), names, values)
