"""Save a pretrained encoder: where timm or transformers know the model, so that they load it, too."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from ssl_blocks.encoders.card import CARD, plain_card
from ssl_blocks.encoders.protocol import FeatureEncoder
from ssl_blocks.encoders.regions import TimmRegions, TokenRegions
from ssl_blocks.encoders.storage import Stored, describe, norm_of
from ssl_blocks.encoders.transformers import TransformersViT
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.quiet import quiet

FORMAT_VERSION = 1
CONTIGUOUS = torch.contiguous_format


def export_encoder(
    encoder: FeatureEncoder,
    folder: Path,
    *,
    tokenizer: Tokenizer | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Path:
    """Write ``config.json``, ``model.safetensors`` and a model card; an existing folder is replaced as a whole.

    ``ssl_blocks.encoders.load_encoder`` loads it again, with equal features. Others load it without this library:

    - A model of timm: ``timm.create_model("local-dir:FOLDER", pretrained=True)``. Calling it returns the mean over
      normalised patch tokens, the same features as the encoder's, if the model was built so, as ``timm_vit`` does.
    - A model of transformers: ``transformers.AutoModel.from_pretrained(FOLDER)``.

    Of torchvision's ``VisionTransformer``, of ``TorchEncoder`` and of ``PostNormTransformer`` the configuration holds
    what they are built from.

    Args:
        encoder: what to save; any encoder of this library.
        folder: where to.
        tokenizer: how pretraining cut the images, noted in the configuration; ``None`` where it did not.
        mean: per channel on the 0..1 scale.
        std: likewise.

    Returns:
        The folder.

    Raises:
        TypeError: if the encoder is of no such kind, or has a part that could not be built again, with the reason.
    """
    inner = encoder.encoder if isinstance(encoder, TokenRegions) else encoder
    stored = describe(inner)
    if stored is None and not isinstance(inner, TransformersViT) and not hasattr(inner.module, "pretrained_cfg"):
        raise TypeError(
            "encoder must be one of this library's, or its module a model of timm, to be exported, got "
            f"{type(inner).__name__} with {type(inner.module).__name__}"
        )
    notes = _notes(encoder, tokenizer, mean, std)
    fresh = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        if stored is not None:
            _save_own(stored, fresh, notes)
        elif isinstance(inner, TransformersViT):
            _save_transformers(inner, fresh, notes)
        else:
            _save_timm(encoder, fresh, notes)
            _note_preprocessing(fresh / "config.json", encoder, tokenizer, mean, std)
        card = plain_card(folder, json.loads((fresh / "config.json").read_text()))
        (fresh / CARD).write_text(card)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
    return folder


def _notes(
    encoder: FeatureEncoder, tokenizer: Tokenizer | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """What evaluation asks for, and loading beyond the model itself."""
    notes = {
        "format_version": FORMAT_VERSION,
        "encoder": type(encoder).__name__,
        "patch": None if tokenizer is None else list(tokenizer.patch),
        "crop": getattr(tokenizer, "crop", 0),
        "grid": None if tokenizer is None else [tokenizer.grid.height, tokenizer.grid.width],
        "image_size": None if tokenizer is None else list(getattr(tokenizer, "image_size", ())) or None,
        "channels": encoder.channels,
        "mean": list(mean),
        "std": list(std),
        "pooling": getattr(encoder, "pooling", "mean of normalised patch tokens"),
    }
    if isinstance(encoder, TimmRegions):
        notes["norm"] = norm_of(encoder)
    return notes


def _save_own(stored: Stored, folder: Path, notes: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    # copies: what layers share is saved for each of them
    state = {name: weight.detach().clone(memory_format=CONTIGUOUS) for name, weight in stored.state.items()}
    save_file(state, folder / "model.safetensors")
    config = {"architecture": stored.architecture, "model_args": stored.model_args, "ssl_blocks": notes}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _save_transformers(encoder: TransformersViT, folder: Path, notes: dict[str, Any]) -> None:
    model: Any = encoder.module
    model.save_pretrained(folder, max_shard_size="1TB")  # one file, however large
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"ssl_blocks": notes}, indent=2) + "\n")


def _save_timm(encoder: FeatureEncoder, folder: Path, notes: dict[str, Any]) -> None:
    with quiet("timm.data", logging.ERROR):  # it remarks on a mean and std that are replaced below
        save_for_hf(
            encoder.module,
            str(folder),
            model_config={"ssl_blocks": notes},
            model_args=dict(getattr(encoder, "model_args", {})),
            safe_serialization=True,
        )


def _note_preprocessing(
    path: Path,
    encoder: FeatureEncoder,
    tokenizer: Tokenizer | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Put what timm's own data pipeline asks for where it looks."""
    config: dict[str, Any] = json.loads(path.read_text())
    if tokenizer is not None:
        grid, patch = tokenizer.grid, tokenizer.patch
        size = (grid.height * patch[0], grid.width * patch[1])
        config["pretrained_cfg"]["input_size"] = [encoder.channels, *size]
    config["pretrained_cfg"] |= {
        "mean": list(mean),
        "std": list(std),
        "crop_pct": 1.0,
        "num_classes": 0,
    }
    path.write_text(json.dumps(config, indent=2) + "\n")
