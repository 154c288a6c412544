"""Which layer of an encoder each parameter belongs to, and how fast it learns there."""

from typing import Any

import torch
from timm.layers import DropPath
from torch import nn

from ssl_blocks.bounds import Dropped
from ssl_blocks.doors import checked
from ssl_blocks.encoders import FeatureEncoder, TokenEncoder
from ssl_blocks.encoders.pooled import adapter_of


@checked
def layer_ids(encoder: FeatureEncoder) -> dict[str, int]:
    """Layer of every parameter of ``encoder.module``: 0 is the embedding, i the block i, then all that follows.

    Semantics of BEiT and MAE: patch embedding, positions and prefix tokens are layer 0, the final norm belongs with
    the head. An encoder tells by a method ``layer_ids``, a timm model in any other by its ``group_matcher``.

    Raises:
        ValueError: if the encoder does not tell, or not for each of its blocks.

    Examples:
        >>> from ssl_blocks.encoders import timm_vit
        >>> ids = layer_ids(timm_vit(image_size=8, patch_size=4, depth=2, embed_dim=16, num_heads=2))
        >>> ids["patch_embed.proj.weight"], ids["blocks.0.norm1.bias"], ids["blocks.1.norm1.bias"], ids["norm.bias"]
        (0, 1, 2, 3)
    """
    kind = type(encoder.module).__name__
    try:
        tells: Any = encoder if hasattr(encoder, "layer_ids") else adapter_of(encoder)
        ids = dict(tells.layer_ids())
    except (TypeError, NotImplementedError):
        raise ValueError(
            f"layer_decay needs to know the layer of every parameter, but {kind} does not tell: it has no "
            "group_matcher, and its adapter no layer_ids. Set layer_decay=1.0 to let all layers learn alike"
        ) from None
    if isinstance(encoder, TokenEncoder):  # timm counts the final norm with the last block
        behind = {id(parameter) for parameter in encoder.norm.parameters()}
        ids |= {name: encoder.depth + 1 for name, p in encoder.module.named_parameters() if id(p) in behind}
    missing = sorted({name for name, _ in encoder.module.named_parameters()} - set(ids))
    if missing:
        raise ValueError(f"layer_decay needs the layer of every parameter, but {kind} leaves out {missing[0]!r}")
    found, top = set(ids.values()), max(ids.values())
    if isinstance(encoder, TokenEncoder):
        wanted = f"{encoder.depth} blocks"
        fits = set(range(1, encoder.depth + 1)) <= found <= set(range(encoder.depth + 2))
    else:
        wanted = "at least two blocks"
        fits = top >= 2 and found | {0} == set(range(top + 1))
    if not fits:
        raise ValueError(
            f"layer_decay needs a layer for each of {wanted}, numbered from 1, but {kind} tells of {sorted(found)}"
        )
    return ids


@checked
def set_drop_path(module: nn.Module, rate: Dropped) -> list[float]:
    """Let every block drop whole images' residuals at random, from 0 in the first block up to ``rate`` in the last.

    Stochastic depth (Huang et al. 2016), as timm builds it; modules are put in where blocks have places named
    ``drop_path...``, and no parameter changes.

    Returns:
        Rates of the blocks, first to last; nothing for a model without such places and ``rate=0``.

    Raises:
        ValueError: if the rate is not within [0, 1), or is above 0 and the model has no such places.

    Examples:
        >>> import timm
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=0)
        >>> [round(rate, 2) for rate in set_drop_path(vit, 0.1)]
        [0.0, 0.05, 0.1]
    """
    blocks = [part for part in module.modules() if _drop_paths(part)]
    if rate > 0 and not blocks:
        raise ValueError(
            f"drop_path={rate} needs blocks with a place for it (drop_path...), but {type(module).__name__} has none: "
            "set drop_path=0.0"
        )
    rates: list[float] = torch.linspace(0, rate, len(blocks), dtype=torch.float64).tolist()
    for block, own in zip(blocks, rates, strict=True):
        for name in _drop_paths(block):
            setattr(block, name, DropPath(own) if own > 0 else nn.Identity())
    return rates


def _drop_paths(part: nn.Module) -> list[str]:
    return [
        name
        for name, child in part.named_children()
        if name.startswith("drop_path") and isinstance(child, nn.Identity | DropPath)
    ]


def spared_names(encoder: FeatureEncoder) -> set[str]:
    """Names of parameters of ``encoder.module`` that must not decay: positions and prefix tokens."""
    for owner in (encoder, encoder.module):
        tell: Any = getattr(owner, "no_weight_decay", None)
        if tell is not None:
            return {name.removeprefix("module.") for name in tell()}
    return set()
