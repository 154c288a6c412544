"""Checkpoints in the layout of RandSAC's pseudocode: `nn.Transformer`, and Linears around it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.weights.filling import DECODER, ENCODER, HEAD, TABLES, fill, own_tensors
from ssl_blocks.encoders.weights.state import Source, read_state
from ssl_blocks.grid import Grid

NAMES = MappingProxyType({
    "transformer": "transformer",
    "positions": "positions",
    "embed": "embed",
    "skip": "skip",
    "head": "head",
})  # fmt: skip
SKIP = "reader.router.mix."
# parts of names in nn.Transformer, and in timm's blocks and the decoder's layers
LAYER = (
    ("self_attn.in_proj_", "attn.qkv."),
    ("self_attn.out_proj.", "attn.proj."),
    ("multihead_attn.out_proj.", "cross_attn.proj."),
    ("linear1.", "mlp.fc1."),
    ("linear2.", "mlp.fc2."),
)


@checked
def load_randsac(
    objective: nn.Module,
    source: Source,
    *,
    encoder_only: bool = False,
    grid: Grid | None = None,
    names: Mapping[str, str] = NAMES,
) -> None:
    """Put weights in the layout of RandSAC's pseudocode into an objective, to pretrain on or to use its encoder.

    The pseudocode is an `nn.Transformer` with a Linear over flattened patches ``(y, x, c)``, one over the layers
    (the skips), one to pixels, and one table of positions for encoder and queries. It names none of them with
    authority, so ``names`` does. Nothing is left at its start: every parameter is filled, or the call is refused before
    the first is changed. The mask that the pseudocode saves is left out.

    Weights do not tell how layers use them: ours normalise first (``norm_first=True``). The pseudocode inherits ReLU
    and an ``eps`` of 1e-5: build the encoder with ``act_layer="relu"``, the decoder with ``act_layer=nn.ReLU``.

    Args:
        objective: RandSAC of the checkpoint's sizes: a timm encoder without class token, a `SegmentDecoder` of its
            width, and a Linear head; a `LearnedSkipRouter` where the file has skips.
        source: file or mapping, see `read_state`.
        encoder_only: leave skips, decoder and head as they are.
        grid: of the checkpoint's positions. ``None`` is the encoder's, where that has as many tokens, or else a square.
        names: what the file calls ``transformer``, ``positions``, ``embed``, ``skip`` and ``head``.

    Raises:
        ValueError: if names or shapes differ, or the file mixes layers and the objective does not.

    Examples:
        >>> import torch
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=16, patch_size=4, depth=1, embed_dim=16, num_heads=2)
        >>> tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
        >>> decoder = sb.SegmentDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2)
        >>> squares = sb.SquarePartitioner(sides=(2,))
        >>> objective = sb.randsac(encoder=encoder, tokenizer=tokenizer, partitioner=squares, decoder=decoder)
        >>> load_randsac(objective, {"weight": torch.zeros(2)})
        Traceback (most recent call last):
        ValueError: the checkpoint holds weight, which is none of transformer, positions, embed, skip, head: see names=
    """
    if set(names) != set(NAMES):
        raise ValueError(f"names={dict(names)} must name {', '.join(NAMES)}, and nothing else")
    found: dict[str, Tensor] = {}
    for name, value in read_state(source).items():
        found |= _translated(name, value, names, objective)
    ours = own_tensors(objective)
    if TABLES[0] in found and TABLES[1] in ours:  # one table serves both
        found[TABLES[1]] = found[TABLES[0]]
    if f"{SKIP}weight" in found and not encoder_only and f"{SKIP}weight" not in ours:
        raise ValueError(
            "the checkpoint mixes encoder layers (skip), but the objective's router learns no mixture: build it with "
            "LearnedSkipRouter"
        )
    fill(objective, found, encoder_only=encoder_only, grid=grid, num_prefix=0)


def _translated(name: str, value: Tensor, names: Mapping[str, str], objective: Any) -> dict[str, Tensor]:
    """One tensor under our names; queries of cross-attention part from keys and values."""
    theirs = {part: f"{word}." for part, word in names.items()}
    if name == names["positions"]:
        return {TABLES[0]: value.reshape(1, -1, value.shape[-1])}
    if name == f"{theirs['embed']}weight":
        height, width = objective.tokenizer.patch
        if value.ndim != 2 or value.shape[1] != objective.tokenizer.channels * height * width:
            raise ValueError(
                f"the checkpoint's {name} of shape {tuple(value.shape)} must have {objective.tokenizer.channels} "
                f"channels of {height}x{width} pixels in each row, as the tokenizer cuts patches"
            )
        kernel = rearrange(value, "d (p q c) -> d c p q", p=height, q=width)
        return {f"{ENCODER}patch_embed.proj.weight": kernel}
    for part, ours in (("embed", f"{ENCODER}patch_embed.proj."), ("skip", SKIP), ("head", HEAD)):
        if name.startswith(theirs[part]):
            return {ours + name.removeprefix(theirs[part]): value}
    if name.startswith(theirs["transformer"]):
        return _layer(name.removeprefix(theirs["transformer"]), value)
    if "mask" in name.lower() and value.ndim == 2 and value.shape[0] == value.shape[1]:
        return {}
    raise ValueError(f"the checkpoint holds {name}, which is none of {', '.join(names.values())}: see names=")


def _layer(name: str, value: Tensor) -> dict[str, Tensor]:
    stack, _, rest = name.partition(".")
    if stack == "encoder":
        begin = f"{ENCODER}blocks." if rest.startswith("layers.") else ENCODER
    else:
        begin = f"{DECODER}layers." if rest.startswith("layers.") else DECODER
    ours = rest.removeprefix("layers.")
    block, cross, kind = ours.partition("multihead_attn.in_proj_")
    if cross:
        dim = len(value) // 3
        attention = f"{begin}{block}cross_attn."
        return {f"{attention}query.{kind}": value[:dim], f"{attention}memory.{kind}": value[dim:]}
    for theirs, mine in LAYER:
        ours = ours.replace(theirs, f"self_{mine}" if stack == "decoder" and theirs.startswith("self_") else mine)
    return {begin + ours: value}
