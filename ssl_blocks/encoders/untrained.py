"""An exported encoder's architecture with fresh random weights."""

import json
from pathlib import Path
from typing import Any

import timm
import torch

from ssl_blocks.encoders.loading import load_encoder
from ssl_blocks.encoders.protocol import FeatureEncoder
from ssl_blocks.encoders.timm import TimmViT, initialize
from ssl_blocks.positions import sincos_table


def untrained(folder: str | Path, *, seed: int, image_size: int | None = None) -> FeatureEncoder:
    trained = load_encoder(folder)
    config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = TimmViT(timm.create_model(config["architecture"], pretrained=False, **config["model_args"]))
        table = trained.module.pos_embed
        fixed = table is not None and torch.equal(
            table[0, -trained.grid.num_tokens :], sincos_table(trained.grid, trained.dim)
        )
        initialize(fresh, fixed_positions=fixed)
    fresh.module.eval()
    return fresh
