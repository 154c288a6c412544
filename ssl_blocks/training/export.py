"""Save a pretrained encoder so that plain timm loads it, or this library where it is no model of timm."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from ssl_blocks.encoders import FeatureEncoder
from ssl_blocks.encoders.loading import OWN_KINDS
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
    mean over normalised patch tokens: the same features as the encoder's. A model of this library, such as
    `PostNormTransformer`, is no model of timm; ``ssl_blocks.encoders.load_encoder`` loads either kind.

    Args:
        encoder: what to save; its module is a timm model, or one of this library.
        folder: where to.
        tokenizer: how pretraining cut the images, noted in the configuration; ``None`` where it did not.
        mean: per channel on the 0..1 scale.
        std: likewise.

    Returns:
        The folder.

    Raises:
        TypeError: if the encoder's module is neither.
    """
    module, architecture = encoder.module, type(encoder.module).__name__
    if architecture not in OWN_KINDS and not hasattr(module, "pretrained_cfg"):
        raise TypeError(
            f"encoder.module must be a model of timm, or a {' or '.join(OWN_KINDS)}, to be exported, got {architecture}"
        )
    fresh = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(fresh, ignore_errors=True)
    notes = {
        "format_version": FORMAT_VERSION,
        "encoder": type(encoder).__name__,
        "patch": None if tokenizer is None else list(tokenizer.patch),
        "crop": getattr(tokenizer, "crop", 0),
        "grid": None if tokenizer is None else [tokenizer.grid.height, tokenizer.grid.width],
        "channels": encoder.channels,
        "mean": list(mean),
        "std": list(std),
        "pooling": getattr(encoder, "pooling", "mean of normalised patch tokens"),
    }
    if architecture in OWN_KINDS:
        _save_own(module, fresh, notes)
    else:
        _save_timm(encoder, fresh, notes)
        _note_preprocessing(fresh / "config.json", encoder, tokenizer, mean, std)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
    return folder


def _save_own(module: nn.Module, folder: Path, notes: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    save_file({name: weight.contiguous() for name, weight in module.state_dict().items()}, folder / "model.safetensors")
    config = {"architecture": type(module).__name__, "model_args": module.model_args, "ssl_blocks": notes}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


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
