"""Checkpoints in the layout of APL's code: queries, keys and values apart, as Linears without bias."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.postnorm import PostNormTransformer
from ssl_blocks.encoders.weights.filling import HEAD, copy_all
from ssl_blocks.encoders.weights.state import Source, read_state

# what a file may call the parts of a block; its classifier is HEAD
NAMES = MappingProxyType({
    "queries": "attention.toqueries",
    "keys": "attention.tokeys",
    "values": "attention.tovalues",
    "projection": "attention.unifyheads",
    "norm1": "norm1",
    "norm2": "norm2",
    "expand": "ff.0",
    "shrink": "ff.2",
    "blocks": "tblocks",
    "head": "head",
})  # fmt: skip
OURS = {"projection": "proj", "norm1": "norm1", "norm2": "norm2", "expand": "mlp.0", "shrink": "mlp.2"}
ATTENTION = ("queries", "keys", "values")


@checked
def load_apl(
    objective: nn.Module, source: Source, *, encoder_only: bool = False, names: Mapping[str, str] = NAMES
) -> None:
    """Put weights in the layout of APL's code into a patch puzzle, to pretrain on or to use its encoder.

    Separate projections to queries, keys and values become the rows of one, in that order. Every parameter is filled,
    or the call is refused before the first is changed. The project publishes code and no weights, so what a file calls
    its parts is an argument; the default is what transformers with this attention commonly call them.

    Args:
        objective: `PatchPuzzle` of the checkpoint's sizes, with a `PostNormTransformer` and a head of its own kind.
        source: file or mapping, see `read_state`.
        encoder_only: leave the head as it is.
        names: what the file calls ``blocks`` (its list of them), in each of these ``queries``, ``keys``, ``values``,
            ``projection``, ``norm1``, ``norm2`` and the Linears ``expand`` and ``shrink``; and ``head``.

    Raises:
        TypeError: if the encoder is another one.
        ValueError: if names or shapes differ, or the file's patches go through an encoder of their own.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.PostNormTransformer(grid=2, patch=4, depth=1, num_heads=2)
        >>> tokenizer = sb.PatchTokenizer(image_size=8, patch_size=4)
        >>> load_apl(sb.PatchPuzzle(encoder=encoder, tokenizer=tokenizer), {"patch.weight": torch.zeros(2)})
        Traceback (most recent call last):
        ValueError: the checkpoint holds patch.weight, which is neither in tblocks nor head: see names=
    """
    encoder = getattr(objective, "encoder", None)
    if not isinstance(encoder, PostNormTransformer):
        raise TypeError(f"objective.encoder must be a PostNormTransformer, got {type(encoder).__name__}")
    if set(names) != set(NAMES):
        raise ValueError(f"names={dict(names)} must name {', '.join(NAMES)}, and nothing else")
    found: dict[str, Tensor] = {}
    rows: dict[str, dict[str, Tensor]] = {}
    for name, value in read_state(source).items():
        _, inside, rest = f".{name}".partition(f".{names['blocks']}.")
        if inside:
            number, _, part = rest.partition(".")
            role, kind = _role(name, part, names)
            if role in ATTENTION:
                rows.setdefault(number, {})[role] = value
            else:
                found[f"encoder.blocks.{number}.{OURS[role]}.{kind}"] = value
        elif name.startswith(f"{names['head']}."):
            found[HEAD + name.removeprefix(f"{names['head']}.")] = value
        else:
            raise ValueError(
                f"the checkpoint holds {name}, which is neither in {names['blocks']} nor {names['head']}: see names="
            )
    found |= {f"encoder.blocks.{number}.qkv.weight": _joined(number, parts) for number, parts in rows.items()}
    ours: dict[str, Tensor] = dict(objective.named_parameters())
    if encoder_only:
        ours, found = ({n: t for n, t in each.items() if n.startswith("encoder.")} for each in (ours, found))
    copy_all(found, ours)


def _role(name: str, part: str, names: Mapping[str, str]) -> tuple[str, str]:
    for role, theirs in names.items():
        if part.startswith(f"{theirs}.") and role not in ("blocks", "head"):
            return role, part.removeprefix(f"{theirs}.")
    raise ValueError(f"the checkpoint holds {name}, which is no part of a block: see names=")


def _joined(number: str, parts: Mapping[str, Tensor]) -> Tensor:
    missing = [role for role in ATTENTION if role not in parts]
    if missing:
        raise ValueError(f"the checkpoint's block {number} lacks its {missing[0]}: see names=")
    shapes = {role: tuple(parts[role].shape) for role in ATTENTION}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the checkpoint's block {number} must project to one shape, got {shapes}")
    return torch.cat([parts[role] for role in ATTENTION])
