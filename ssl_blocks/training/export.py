"""Save a pretrained encoder so that plain timm loads it."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from timm.models import save_for_hf

from ssl_blocks.encoders import FeatureEncoder
from ssl_blocks.tokenizers import Tokenizer
from ssl_blocks.training.logs import quiet

FORMAT_VERSION = 1


def export_encoder(
    encoder: FeatureEncoder,
    folder: Path,
    *,
    tokenizer: Tokenizer | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Path:
    """Write ``config.json`` and ``model.safetensors``; an existing folder is replaced only when both are there.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` then returns the model, and calling it returns the
    mean over normalised patch tokens: the same features as the encoder's.

    Args:
        encoder: what to save; its module is a timm model.
        folder: where to.
        tokenizer: how pretraining cut the images, noted in the configuration; ``None`` where it did not.
        mean: per channel on the 0..1 scale.
        std: likewise.

    Returns:
        The folder.

    Raises:
        TypeError: if the encoder's module is no timm model.
    """
    module = encoder.module
    if not hasattr(module, "pretrained_cfg"):
        raise TypeError(f"encoder.module must be a model of timm to be exported, got {type(module).__name__}")
    fresh = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(fresh, ignore_errors=True)
    notes = {
        "format_version": FORMAT_VERSION,
        "encoder": type(encoder).__name__,
        "patch": None if tokenizer is None else list(tokenizer.patch),
        "crop": getattr(tokenizer, "crop", 0),
        "channels": encoder.channels,
        "mean": list(mean),
        "std": list(std),
        "pooling": "mean of normalised patch tokens",
    }
    with quiet("timm.data", logging.ERROR):  # it remarks on a mean and std that are replaced below
        save_for_hf(
            module,
            str(fresh),
            model_config={"ssl_blocks": notes},
            model_args=dict(getattr(encoder, "model_args", {})),
            safe_serialization=True,
        )
    _note_preprocessing(fresh / "config.json", encoder, tokenizer, mean, std)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
    return folder


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
