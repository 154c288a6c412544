"""Exported encoders, loaded again."""

import json
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file

from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.encoders.puzzle import PostNormTransformer

OWN_KINDS = {"PostNormTransformer": PostNormTransformer}  # models of this library, by their name in exports
# what a damaged file or a foreign configuration leads to, in json, safetensors, timm and torch
_DAMAGED = (ValueError, TypeError, LookupError, RuntimeError, AttributeError, AssertionError, SafetensorError)


def load_encoder(folder: str | Path) -> TokenEncoder:
    """Load an encoder that a run or ``ssl_blocks.training.export_encoder`` has saved, in evaluation mode.

    Args:
        folder: what was exported: ``config.json`` and ``model.safetensors``.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if they are no export, damaged, or do not fit each other.

    Examples:
        >>> import tempfile, torch
        >>> from ssl_blocks.training import export_encoder
        >>> encoder = PostNormTransformer(grid=2, patch=4, depth=1, num_heads=2)
        >>> half = (0.5, 0.5, 0.5)
        >>> folder = export_encoder(encoder, Path(tempfile.mkdtemp()) / "encoder", tokenizer=None, mean=half, std=half)
        >>> images = torch.rand(2, 3, 8, 8)
        >>> torch.equal(load_encoder(folder).features(images), encoder.features(images))
        True
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"folder={str(folder)!r} must be an exported encoder, but {name} is not in it")
    from ssl_blocks.encoders import wrap  # which imports this module

    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        architecture, arguments = config["architecture"], config.get("model_args") or {}
        if architecture in OWN_KINDS:
            # JSON has no tuples
            pairs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
            own = OWN_KINDS[architecture](**pairs)
            own.load_state_dict(load_file(folder / "model.safetensors"))
            encoder: TokenEncoder = own
        else:
            encoder = wrap(timm.create_model(f"local-dir:{folder}", pretrained=True))
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"folder={str(folder)!r} holds no encoder that can be loaded: {type(error).__name__}: {reason}"
        ) from error
    encoder.module.eval()
    return encoder
