"""Exported encoders, loaded again."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ssl_blocks.encoders.protocol import FeatureEncoder, TokenEncoder
from ssl_blocks.encoders.regions import TokenRegions
from ssl_blocks.encoders.storage import ImageSizeError, rebuild

# what a damaged file or a foreign configuration leads to, in json, safetensors, timm, transformers and torch
_DAMAGED = (ValueError, TypeError, LookupError, RuntimeError, AttributeError, AssertionError, SafetensorError)


def load_encoder(folder: str | Path, *, image_size: int | tuple[int, int] | None = None) -> FeatureEncoder:
    """Load an encoder that a run or ``ssl_blocks.engine.export_encoder`` has saved, in evaluation mode.

    It is of the kind that was saved, with equal features: a ``TokenEncoder`` for vision transformers, a
    ``RegionEncoder`` where ``TimmRegions`` or ``TokenRegions`` was saved. Folders that timm or transformers have
    written themselves can be loaded, too. Nothing is fetched from a network, and no code of the folder is run.

    At another ``image_size`` position tables are resampled (bicubically, with antialiasing), fixed tables of sines and
    cosines like learned ones. Rotary positions follow the grid by themselves, and what has no positions gets the grid
    alone. Windows of Swin follow timm's rules; convolutions take any size and stay as they are.

    Args:
        folder: what was exported: ``config.json`` and ``model.safetensors``.
        image_size: height and width of inputs in pixels; one number means a square. ``None``: as it was saved.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if they are no export, damaged, or do not fit each other; if the encoder's patch does not divide
            ``image_size``, or the model takes squares alone (torchvision's).
        ImportError: if it is a model of transformers, which is not installed.

    Examples:
        >>> import tempfile, torch
        >>> from ssl_blocks.encoders import PostNormTransformer
        >>> from ssl_blocks.engine import export_encoder
        >>> encoder = PostNormTransformer(grid=2, patch=4, depth=1, num_heads=2)
        >>> half = (0.5, 0.5, 0.5)
        >>> folder = export_encoder(encoder, Path(tempfile.mkdtemp()) / "encoder", tokenizer=None, mean=half, std=half)
        >>> images = torch.rand(2, 3, 8, 8)
        >>> torch.equal(load_encoder(folder).features(images), encoder.features(images))
        True
        >>> load_encoder(folder, image_size=(12, 16)).features(torch.rand(2, 3, 12, 16)).shape
        torch.Size([2, 48])
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"folder={str(folder)!r} must be an exported encoder, but {name} is not in it")
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if image_size is not None and (len(sides) != 2 or not all(type(side) is int for side in sides)):
        raise ValueError(f"image_size={image_size!r} must be a whole number of pixels, or two: height and width")
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        notes: dict[str, Any] = config.get("ssl_blocks") or {}
        encoder = rebuild(folder, config, image_size)
        if notes.get("encoder") == "TokenRegions":
            assert isinstance(encoder, TokenEncoder)
            encoder = TokenRegions(encoder, class_token=notes["pooling"] == "class token")
    except ImageSizeError:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"folder={str(folder)!r} holds no encoder that can be loaded: {type(error).__name__}: {reason}"
        ) from error
    encoder.module.eval()
    return encoder
