"""Checkpoints in the layout of SAIM's official code."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.weights.filling import DECODER, HEAD, TABLES, fill, own_tensors, translated
from ssl_blocks.encoders.weights.state import Source, read_state
from ssl_blocks.grid import Grid

QUERIES, PREDICTION, LAYERS = "query_blocks.", "prediction_head.", f"{DECODER}layers."
FIXED = ("gaussian_blur.weight",)  # the target's kernel, which is no weight


@checked
def load_saim(objective: nn.Module, source: Source, *, encoder_only: bool = False, grid: Grid | None = None) -> None:
    """Put the weights of an official SAIM checkpoint into an objective, to pretrain on or to use its encoder.

    Nothing is left at its start: every parameter is filled, or the call is refused before the first is changed. SAIM's
    separate projections to queries, keys and values become the rows of timm's one, in that order. Positions are
    resampled where the grid is another; a decoder with fixed sine-cosine positions computes its own.

    Args:
        objective: SAIM of the checkpoint's sizes: an encoder with a class token, a `QueryStreamDecoder`, and a head
            that is a Linear or timm's ``Mlp``. Where the decoder shares the encoder's blocks, the file's query blocks
            must equal its blocks.
        source: file or mapping, see `read_state`.
        encoder_only: leave the decoder and the head as they are; files for fine-tuning hold none.
        grid: of the checkpoint's positions. ``None`` is the encoder's, where that has as many tokens, or else a square.

    Raises:
        ValueError: if names or shapes differ, the decoder shares weights that differ in the file, or the file holds
            neither query blocks nor a head and ``encoder_only`` is false.

    Examples:
        >>> import ssl_blocks as sb
        >>> size = {"depth": 1, "embed_dim": 16, "num_heads": 2}
        >>> encoder = sb.encoders.timm_vit(image_size=16, patch_size=4, class_token=True, **size)
        >>> tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
        >>> decoder = sb.QueryStreamDecoder.sharing(encoder, depth=1)
        >>> saim = sb.saim(encoder=encoder, tokenizer=tokenizer, decoder=decoder)
        >>> state = encoder.module.state_dict()
        >>> for kind in ("weight", "bias"):
        ...     rows = state.pop(f"blocks.0.attn.qkv.{kind}").chunk(3)
        ...     state |= {f"blocks.0.attn.{part}.{kind}": value for part, value in zip("qkv", rows)}
        >>> load_saim(saim, state, encoder_only=True)
    """
    state = _joined({name: value for name, value in read_state(source).items() if name not in FIXED})
    ours = own_tensors(objective)
    if not encoder_only and not any(name.startswith((QUERIES, PREDICTION)) for name in state):
        raise ValueError(
            "the checkpoint holds neither query blocks nor a prediction head: give encoder_only=True, or a file of the "
            "whole model"
        )
    if not encoder_only and not any(name.startswith(LAYERS) for name in ours):
        state = _without_copies(state)
    blocks = {name.split(".")[1] for name in state if name.startswith(QUERIES)}
    names = {f"{QUERIES}{number}.": f"{LAYERS}{number}.block." for number in blocks}
    found = translated(state, {**names, PREDICTION: HEAD})
    if TABLES[0] in found and TABLES[1] in ours:  # one table in SAIM's files: queries start as it
        found[TABLES[1]] = found[TABLES[0]]
    fill(objective, found, encoder_only=encoder_only, grid=grid)


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the projections to queries, keys and values into timm's one."""
    joined = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        block, attn, part = module.rpartition(".attn.")
        if not attn or part not in ("q", "k", "v"):
            joined[name] = value
        elif part == "q" or f"{block}.attn.q.{kind}" not in state:
            joined[f"{block}.attn.qkv.{kind}"] = _rows(state, f"{block}.attn.", kind)
    return joined


def _rows(state: Mapping[str, Tensor], attn: str, kind: str) -> Tensor:
    names = [f"{attn}{part}.{kind}" for part in "qkv"]
    for name in names:
        if name not in state:
            raise ValueError(f"the checkpoint lacks {name}: it must hold projections to queries, keys and values")
    parts = [state[name] for name in names]
    if len({part.shape for part in parts}) > 1:
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in zip(names, parts, strict=True))
        raise ValueError(f"the checkpoint's projections must have one shape, got {shapes}")
    return torch.cat(parts)


def _without_copies(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out query blocks that are the encoder's own."""
    for name in [name for name in state if name.startswith(QUERIES)]:
        own = "blocks." + name.removeprefix(QUERIES)
        if own not in state:
            raise ValueError(f"the decoder shares the encoder's blocks, but the checkpoint has {name} and no {own}")
        if not torch.equal(state[name], state[own]):
            raise ValueError(
                f"the decoder shares the encoder's blocks, but the checkpoint's {name} differs from its {own}: build "
                "the decoder with blocks of its own (num_heads=...)"
            )
    return {name: value for name, value in state.items() if not name.startswith(QUERIES)}
