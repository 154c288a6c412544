"""APL's layout goes into the patch puzzle whole, or not at all."""

import re

import pytest
import torch
from torch import Tensor, nn

import ssl_blocks as sb
from ssl_blocks.objectives.weights import load_apl
from ssl_blocks.objectives.weights.apl import NAMES

DIM, HEADS, DEPTH = 48, 3, 2
TOKENIZER = sb.PatchTokenizer(image_size=12, patch_size=4)


def puzzle(**options) -> sb.PatchPuzzle:
    torch.manual_seed(0)
    arguments = {"grid": 3, "patch": 4, "depth": DEPTH, "num_heads": HEADS} | options
    encoder = sb.encoders.PostNormTransformer(**arguments)
    return sb.PatchPuzzle(encoder=encoder, tokenizer=TOKENIZER).double()


def state() -> dict[str, Tensor]:
    """Weights under the names that the loader takes where nothing else is said, each written out."""
    generator = torch.Generator().manual_seed(1)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3

    found = {"head.weight": some(9, DIM), "head.bias": some(9)}
    for block in range(DEPTH):
        begin = f"transformer.tblocks.{block}."
        found |= {f"{begin}attention.{part}.weight": some(DIM, DIM) for part in ("tokeys", "toqueries", "tovalues")}
        found |= {f"{begin}attention.unifyheads.weight": some(DIM, DIM), f"{begin}attention.unifyheads.bias": some(DIM)}
        for norm in ("norm1", "norm2"):
            found |= {f"{begin}{norm}.weight": 1 + some(DIM), f"{begin}{norm}.bias": some(DIM)}
        found |= {f"{begin}ff.0.weight": some(3 * DIM, DIM), f"{begin}ff.0.bias": some(3 * DIM)}
        found |= {f"{begin}ff.2.weight": some(DIM, 3 * DIM), f"{begin}ff.2.bias": some(DIM)}
    return found


def slowly(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Logits ``[B, N, N]``, head by head and token by token."""
    cells = [images[:, :, y : y + 4, x : x + 4].flatten(1) for y in (0, 4, 8) for x in (0, 4, 8)]
    x = torch.stack(cells, 1)
    for block in range(DEPTH):
        own = {name.split(f"tblocks.{block}.")[1]: w for name, w in weights.items() if f"tblocks.{block}." in name}
        queries, keys, values = (
            x @ own[f"attention.{part}.weight"].T / DIM**0.25 for part in ("toqueries", "tokeys", "tovalues")
        )
        width, seen = DIM // HEADS, []
        for head in range(HEADS):
            some = slice(head * width, (head + 1) * width)
            chance = (queries[..., some] @ keys[..., some].transpose(1, 2)).softmax(-1)
            seen.append(chance @ values[..., some])
        attended = torch.cat(seen, -1) @ own["attention.unifyheads.weight"].T + own["attention.unifyheads.bias"]
        x = nn.functional.layer_norm(attended + x, (DIM,), own["norm1.weight"], own["norm1.bias"])
        hidden = (x @ own["ff.0.weight"].T + own["ff.0.bias"]).relu()
        x = hidden @ own["ff.2.weight"].T + own["ff.2.bias"] + x
        x = nn.functional.layer_norm(x, (DIM,), own["norm2.weight"], own["norm2.bias"])
    return x @ weights["head.weight"].T + weights["head.bias"]


def test_logits_are_those_of_the_layout() -> None:
    objective, weights = puzzle().eval(), state()
    load_apl(objective, {"state_dict": weights})
    batch = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(objective(batch).predictions, slowly(weights, batch), rtol=0, atol=1e-10)


def test_other_names_are_told_and_the_head_may_stay() -> None:
    objective, weights = puzzle(), state()
    before = objective.head.weight.clone()
    renamed = {name.replace("attention.to", "att.").replace("tblocks", "blocks"): w for name, w in weights.items()}
    words = {"queries": "att.queries", "keys": "att.keys", "values": "att.values", "blocks": "blocks"}
    with pytest.raises(ValueError, match="which is neither in tblocks nor head: see names="):
        load_apl(objective, renamed)
    load_apl(objective, renamed, names={**NAMES, **words}, encoder_only=True)
    rows = torch.cat([weights[f"transformer.tblocks.1.attention.{part}.weight"] for part in ("toqueries", "tokeys")])
    assert torch.equal(objective.encoder.blocks[1].qkv.weight[: 2 * DIM], rows)
    assert torch.equal(objective.head.weight, before)


@pytest.mark.parametrize(
    ("options", "drop", "message"),
    [
        ({"depth": 1}, "", "the objective has no encoder.blocks.1"),
        ({"mlp_ratio": 2}, "", "mlp.0.weight must have shape (96, 48), but the checkpoint's has (144, 48)"),
        ({}, "transformer.tblocks.1.attention.tokeys.weight", "the checkpoint's block 1 lacks its keys"),
        ({}, "head.bias", "the checkpoint lacks head.bias"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(options, drop, message) -> None:
    objective = puzzle(**options)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        load_apl(objective, {name: value for name, value in state().items() if name != drop})
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_another_encoder_is_refused() -> None:
    encoder = sb.encoders.timm_vit(image_size=12, patch_size=4, depth=1, embed_dim=16, num_heads=2, positions="none")
    with pytest.raises(TypeError, match=r"objective.encoder must be a PostNormTransformer, got TimmViT"):
        load_apl(sb.PatchPuzzle(encoder=encoder, tokenizer=TOKENIZER), state())
