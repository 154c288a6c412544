"""An exported encoder with random weights: what pretraining has to beat."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ssl_blocks.encoders.loading import load_encoder
from ssl_blocks.encoders.protocol import FeatureEncoder
from ssl_blocks.encoders.storage.timm import knows_size
from ssl_blocks.encoders.timm import TimmViT, initialize, is_sincos
from ssl_blocks.parts.tokenize import pair


def untrained(folder: str | Path, *, seed: int, image_size: int | tuple[int, int] | None = None) -> FeatureEncoder:
    """Load an exported encoder and draw all its weights anew; fixed tables of positions stay.

    Models of timm are drawn as timm draws them: one built by ``timm_vit`` right after ``torch.manual_seed(seed)``
    comes out the same. Layers of other models are drawn as torch draws them, their tables and tokens from
    N(0, 0.02²).

    Args:
        folder: what was exported.
        seed: of the weights; torch's own generator is left alone.
        image_size: as for `load_encoder`.

    Raises:
        OSError: as `load_encoder`.
        ValueError: likewise.

    Examples:
        >>> import tempfile
        >>> from ssl_blocks.encoders import timm_vit
        >>> from ssl_blocks.engine import export_encoder
        >>> _ = torch.manual_seed(3)
        >>> encoder = timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2).eval()
        >>> half = (0.5, 0.5, 0.5)
        >>> folder = export_encoder(encoder, Path(tempfile.mkdtemp()) / "encoder", tokenizer=None, mean=half, std=half)
        >>> images = torch.rand(2, 3, 8, 8)
        >>> torch.equal(untrained(folder, seed=3).features(images), encoder.features(images))
        True
    """
    with torch.random.fork_rng(devices=[]):
        encoder = load_encoder(folder, image_size=image_size)
        stored = load_encoder(folder)  # at its own size, at which a fixed table can be told
        torch.manual_seed(seed)
        if hasattr(encoder.module, "pretrained_cfg"):
            sized = image_size is not None and knows_size(encoder.module)
            options: dict[str, Any] = {"img_size": pair(image_size)} if sized and image_size is not None else {}
            fresh = timm.create_model(f"local-dir:{folder}", pretrained=False, **options)
            if isinstance(stored, TimmViT):
                table = stored.module.pos_embed
                fixed = table is not None and is_sincos(table.detach()[0], stored.grid)
                initialize(TimmViT(fresh), fixed_positions=fixed)
            encoder.module.load_state_dict(fresh.state_dict())
        else:
            _draw(encoder.module)
    return encoder


@torch.no_grad()
def _draw(module: nn.Module) -> None:
    for part in module.modules():
        own = list(part.parameters(recurse=False))
        reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        if callable(reset) and not isinstance(part, nn.TransformerEncoder):
            reset()
            continue
        for parameter in own:
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.ones_(parameter)  # scales of layers
