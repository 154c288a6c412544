"""One tiny encoder of every family: those that docs/encoders.md lists."""

import importlib.util
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def _load():
    spec = importlib.util.spec_from_file_location("make_encoder_table", ROOT / "docs" / "make_encoder_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = _load()
FAMILIES = TABLE.FAMILIES


def shaken(model, scale=0.2):
    """Move every parameter: zeros, ones and 1e-5 at the start would hide what is left out."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


def family(name, depth=2):
    """A 4x4 grid of 4x4 patches, width 16, evaluation mode."""
    torch.manual_seed(0)
    return shaken(FAMILIES[name](depth=depth)).eval()


def images_for(encoder, batch=2):
    size = [n * p for n, p in zip(encoder.grid.sizes, encoder.patch, strict=True)]
    return torch.randn(batch, encoder.channels, *size, generator=torch.Generator().manual_seed(1))


def raster(encoder, batch=2):
    return torch.arange(encoder.grid.num_tokens).expand(batch, -1)


def causal(encoder, batch=2):
    """Each token sees itself and those before it in an order of its image; prefix tokens see each other."""
    rank = torch.rand(batch, encoder.grid.num_tokens, generator=torch.Generator().manual_seed(2)).argsort(1)
    step = torch.nn.functional.pad(rank, (encoder.num_prefix, 0), value=-1)
    return step[:, None, None, :] <= step[:, None, :, None]
