"""Checkpoints in the layout of MAE's official code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_blocks.encoders.weights.filling import ENCODER, fill, fit_table, own_tensors
from ssl_blocks.encoders.weights.reading import read_state
from ssl_blocks.objectives import SegmentPrediction

# beginnings of names in MAE's files, and in the objective
NAMES = {
    "decoder_embed.": "decoder.memory_proj.",
    "mask_token": "decoder.mask_token",
    "decoder_blocks.": "decoder.blocks.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "head.",
}
TABLES = {"pos_embed": f"{ENCODER}pos_embed", "decoder_pos_embed": "decoder.positions.table"}


def load_mae(
    objective: SegmentPrediction, source: str | Path | Mapping[str, Any], *, encoder_only: bool = False
) -> None:
    """Put the weights of an official MAE checkpoint into an objective, to pretrain on or to use its encoder.

    Nothing is left at its start: every parameter is filled, or the call is refused before the first is changed. The
    encoder's positions and a learned table of the decoder are resampled where the grid is another; a decoder with
    fixed sine-cosine positions computes its own.

    Args:
        objective: MAE of the checkpoint's sizes, with a class token, a `MaskTokenDecoder` and a Linear head.
        source: file or mapping, see `read_state`.
        encoder_only: leave the decoder as it is; files for fine-tuning hold none.

    Raises:
        ValueError: if names or shapes differ, or the file holds no decoder and ``encoder_only`` is false.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(
        ...     image_size=16, patch_size=4, depth=1, embed_dim=16, num_heads=2, class_token=True
        ... )
        >>> tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
        >>> decoder = sb.MaskTokenDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2)
        >>> mae = SegmentPrediction(
        ...     encoder=encoder, tokenizer=tokenizer, target=sb.PixelTarget(tokenizer), decoder=decoder
        ... )
        >>> load_mae(mae, encoder.module.state_dict(), encoder_only=True)
    """
    state = read_state(source)
    ours = own_tensors(objective)
    if not encoder_only and not any(name.startswith("decoder_") for name in state):
        raise ValueError("the checkpoint holds no decoder: give encoder_only=True, or a file of the whole model")
    found = {_translate(name): value for name, value in state.items()}
    if encoder_only:
        found = {name: value for name, value in found.items() if name.startswith(ENCODER)}
    for name in (table for table in TABLES.values() if table in found and table in ours):
        found[name] = fit_table(name, found[name], ours[name], objective.encoder.grid)
    fill(ours, found, [name for name in ours if not encoder_only or name.startswith(ENCODER)])


def _translate(name: str) -> str:
    if name in TABLES:
        return TABLES[name]
    for theirs, own in NAMES.items():
        if name.startswith(theirs):
            return own + name.removeprefix(theirs)
    return ENCODER + name
