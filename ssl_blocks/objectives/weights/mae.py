"""Checkpoints in the layout of MAE's official code."""

from torch import nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.weights.filling import DECODER, HEAD, TABLES, fill, translated
from ssl_blocks.encoders.weights.state import Source, read_state
from ssl_blocks.grid import Grid

# beginnings of names in MAE's files, and in the objective
NAMES = {
    "decoder_pos_embed": TABLES[1],
    "decoder_embed.": f"{DECODER}memory_proj.",
    "mask_token": f"{DECODER}mask_token",
    "decoder_blocks.": f"{DECODER}blocks.",
    "decoder_norm.": f"{DECODER}norm.",
    "decoder_pred.": HEAD,
}
CLASSIFIER = ("head.weight", "head.bias")  # what fine-tuning puts on top, and no pretraining has


@checked
def load_mae(objective: nn.Module, source: Source, *, encoder_only: bool = False, grid: Grid | None = None) -> None:
    """Put the weights of an official MAE checkpoint into an objective, to pretrain on or to use its encoder.

    Nothing is left at its start: every parameter is filled, or the call is refused before the first is changed. The
    encoder's positions and a learned table of the decoder are resampled where the grid is another; a decoder with
    fixed sine-cosine positions computes its own. A classifier's ``head``, as fine-tuned files have, is left out.

    Args:
        objective: MAE of the checkpoint's sizes, with a class token, a `MaskTokenDecoder` and a Linear head.
        source: file or mapping, see `read_state`.
        encoder_only: leave the decoder as it is; files for fine-tuning hold none.
        grid: of the checkpoint's positions. ``None`` is the encoder's, where that has as many tokens, or else a square.

    Raises:
        ValueError: if names or shapes differ, or the file holds no decoder and ``encoder_only`` is false.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(
        ...     image_size=16, patch_size=4, depth=1, embed_dim=16, num_heads=2, class_token=True
        ... )
        >>> tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
        >>> decoder = sb.MaskTokenDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2)
        >>> mae = sb.mae(
        ...     encoder=encoder, tokenizer=tokenizer, target=sb.PixelTarget(tokenizer), decoder=decoder
        ... )
        >>> load_mae(mae, encoder.module.state_dict(), encoder_only=True)
    """
    state = {name: value for name, value in read_state(source).items() if name not in CLASSIFIER}
    if not encoder_only and not any(name.startswith("decoder_") for name in state):
        raise ValueError("the checkpoint holds no decoder: give encoder_only=True, or a file of the whole model")
    fill(objective, translated(state, NAMES), encoder_only=encoder_only, grid=grid)
