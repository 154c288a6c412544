"""SAIM's official layout of names goes into the objective whole, or not at all."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn

import ssl_blocks as sb
from ssl_blocks.objectives.weights import load_saim
from ssl_blocks.parts.position import resample_positions
from tests.recipes import images

DEPTH = 4
CASES = [(False, 4, "linear"), (False, 1, "mlp"), (True, 2, "mlp"), (True, 4, "linear")]
whole = pytest.mark.parametrize(("share", "query_depth", "head"), CASES)


def build(
    *,
    seed: int = 0,
    share: bool = False,
    query_depth: int = 2,
    head: str = "linear",
    image_size: int = 16,
    query_positions: str = "sincos",
    **options,
) -> sb.SegmentPrediction:
    torch.manual_seed(seed)
    options = {"class_token": True, "embed_dim": 16, "depth": DEPTH, "num_heads": 2} | options
    encoder = sb.encoders.timm_vit(image_size=image_size, patch_size=4, **options)
    tokenizer = sb.PatchTokenizer(image_size=image_size, patch_size=4)
    target = sb.PixelTarget(tokenizer, normalize=True, blur=(3, 1.0))
    sizes = {"depth": query_depth, "positions": query_positions}
    own = {"grid": encoder.grid, "dim": encoder.dim, "num_heads": 2, "norm": encoder.norm, **sizes}
    objective = sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.TokenPartitioner(),
        target=target,
        reader=sb.DecoderReader(
            sb.MatchedRouter(encoder_depth=encoder.depth, decoder_depth=query_depth),
            sb.QueryStreamDecoder.sharing(encoder, **sizes) if share else sb.QueryStreamDecoder(**own),
        ),
        head=Mlp(encoder.dim, 64, target.dim) if head == "mlp" else nn.Linear(encoder.dim, target.dim),
        predict_first=encoder.num_prefix > 0,
    )
    with torch.no_grad():  # biases at zero and norms at one would hide what is left out
        for parameter in objective.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return objective.eval()


def official(saim: sb.SegmentPrediction) -> dict[str, Tensor]:
    """The weights under the names of SAIM's own code, each written out."""
    vit = saim.encoder.module
    shared = not hasattr(saim.reader.decoder, "layers")
    state = {
        "cls_token": vit.cls_token,
        "pos_embed": vit.pos_embed,
        "patch_embed.proj.weight": vit.patch_embed.proj.weight,
        "patch_embed.proj.bias": vit.patch_embed.proj.bias,
        "norm.weight": vit.norm.weight,
        "norm.bias": vit.norm.bias,
        "gaussian_blur.weight": torch.ones(3, 1, 9, 9) / 81,
    }
    queries = vit.blocks if shared else [layer.block for layer in saim.reader.decoder.layers]
    for name, blocks in (("blocks", vit.blocks), ("query_blocks", queries)):
        for i, block in enumerate(blocks):
            for kind in ("weight", "bias"):
                query, key, value = getattr(block.attn.qkv, kind).chunk(3)
                state[f"{name}.{i}.norm1.{kind}"] = getattr(block.norm1, kind)
                state[f"{name}.{i}.attn.q.{kind}"] = query
                state[f"{name}.{i}.attn.k.{kind}"] = key
                state[f"{name}.{i}.attn.v.{kind}"] = value
                state[f"{name}.{i}.attn.proj.{kind}"] = getattr(block.attn.proj, kind)
                state[f"{name}.{i}.norm2.{kind}"] = getattr(block.norm2, kind)
                state[f"{name}.{i}.mlp.fc1.{kind}"] = getattr(block.mlp.fc1, kind)
                state[f"{name}.{i}.mlp.fc2.{kind}"] = getattr(block.mlp.fc2, kind)
    for kind in ("weight", "bias"):
        if isinstance(saim.head, Mlp):
            state[f"prediction_head.fc1.{kind}"] = getattr(saim.head.fc1, kind)
            state[f"prediction_head.fc2.{kind}"] = getattr(saim.head.fc2, kind)
        else:
            state[f"prediction_head.{kind}"] = getattr(saim.head, kind)
    return {name: value.detach().clone() for name, value in state.items()}


def encoder_alone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(("query_blocks", "prediction_head"))}


def outputs(saim: sb.SegmentPrediction, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and predictions of one draw."""
    out = saim(batch, saim.draw(batch, generator=torch.Generator().manual_seed(0)))
    return out.loss, out.predictions


class Official:
    """SAIM's forward pass on nothing but its file, one image at a time."""

    def __init__(self, state: dict[str, Tensor], *, heads: int) -> None:
        self.state, self.heads = state, heads

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        x = self.linear(f"{name}.fc1", x)
        return self.linear(f"{name}.fc2", x * (1 + torch.erf(x / math.sqrt(2))) / 2)

    def block(self, name: str, x: Tensor, memory: Tensor, allowed: Tensor) -> Tensor:
        seen = self.norm(f"{name}.norm1", memory)
        query = self.linear(f"{name}.attn.q", self.norm(f"{name}.norm1", x))
        key, value = self.linear(f"{name}.attn.k", seen), self.linear(f"{name}.attn.v", seen)
        width = query.shape[-1] // self.heads
        out = []
        for head in range(self.heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, part] @ key[:, part].T / math.sqrt(width)
            out.append(scores.masked_fill(~allowed, -math.inf).softmax(-1) @ value[:, part])
        x = x + self.linear(f"{name}.attn.proj", torch.cat(out, -1))
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", x))

    def patches(self, image: Tensor) -> Tensor:
        kernel = self.state["patch_embed.proj.weight"]
        side = kernel.shape[-1]
        rows = []
        for top in range(0, image.shape[1], side):
            for left in range(0, image.shape[2], side):
                patch = image[:, top : top + side, left : left + side]
                rows.append((kernel * patch).sum((1, 2, 3)) + self.state["patch_embed.proj.bias"])
        return torch.stack(rows)

    def __call__(self, image: Tensor, noise: Tensor, *, depth: int, query_depth: int) -> Tensor:
        table, class_token = self.state["pos_embed"][0], self.state["cls_token"][0]
        n = len(noise)
        content, query = torch.zeros(n + 1, n + 1, dtype=torch.bool), torch.zeros(n, n + 1, dtype=torch.bool)
        content[:, 0] = query[:, 0] = True
        content[1:, 1:] = noise[:, None] >= noise[None, :]
        query[:, 1:] = noise[:, None] > noise[None, :]
        h, g = torch.cat([class_token, self.patches(image)]) + table, table[1:]
        step = 0
        for i in range(depth):
            h = self.block(f"blocks.{i}", h, h, content)
            if (i + 1) % (depth // query_depth) == 0:
                g = self.block(f"query_blocks.{step}", g, h, query)
                step += 1
        g = self.norm("norm", g)
        mlp = "prediction_head.fc1.weight" in self.state
        return self.mlp("prediction_head", g) if mlp else self.linear("prediction_head", g)


@whole
def test_a_loaded_objective_predicts_what_the_layout_means(share: bool, query_depth: int, head: str) -> None:
    state = official(build(seed=1, share=share, query_depth=query_depth, head=head))
    saim = build(seed=2, share=share, query_depth=query_depth, head=head)
    load_saim(saim, state)
    batch = images(2)
    draw = saim.draw(batch, generator=torch.Generator().manual_seed(0))
    predictions = draw.put(saim(batch, draw).predictions)
    slow = Official(state, heads=2)
    for image, noise, predicted in zip(batch, draw.rank, predictions, strict=True):
        expected = slow(image, noise, depth=DEPTH, query_depth=query_depth)
        torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-5)


@whole
def test_a_whole_checkpoint_goes_on_where_it_stood(tmp_path: Path, share: bool, query_depth: int, head: str) -> None:
    one, other = (build(seed=seed, share=share, query_depth=query_depth, head=head) for seed in (1, 2))
    torch.save({"model": official(one), "epoch": 7}, tmp_path / "saim.pth")
    assert not torch.equal(outputs(one, images(2))[0], outputs(other, images(2))[0])
    load_saim(other, tmp_path / "saim.pth")
    for before, after in zip(outputs(one, images(2)), outputs(other, images(2)), strict=True):
        assert torch.equal(before, after)
    for (name, before), after in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(before, after), name


def test_shared_weights_start_blocks_of_the_decoders_own() -> None:
    one = build(seed=1, share=True, query_depth=DEPTH)
    other = build(seed=2, query_depth=DEPTH)
    load_saim(other, official(one))
    torch.testing.assert_close(outputs(one, images(2)), outputs(other, images(2)), rtol=0, atol=1e-6)


def test_a_shared_decoder_needs_no_copies_of_the_blocks() -> None:
    one, other = build(seed=1, share=True), build(seed=2, share=True)
    load_saim(other, {name: value for name, value in official(one).items() if not name.startswith("query_blocks")})
    assert torch.equal(outputs(one, images(2))[1], outputs(other, images(2))[1])


def test_a_file_for_fine_tuning_gives_the_encoder_alone() -> None:
    one, other = build(seed=1), build(seed=2)
    rest = {n: p.clone() for n, p in other.named_parameters() if not n.startswith("encoder.")}
    state = encoder_alone(official(one))
    with pytest.raises(ValueError, match="holds neither query blocks nor a prediction head: give encoder_only=True"):
        load_saim(other, state)
    load_saim(other, state, encoder_only=True)
    assert torch.equal(one.encoder.features(images(2)), other.encoder.features(images(2)))
    assert rest
    assert all(torch.equal(dict(other.named_parameters())[name], value) for name, value in rest.items())


def test_a_whole_file_gives_the_encoder_alone_if_asked() -> None:
    one, other = build(seed=1, query_depth=4), build(seed=2, query_depth=1, head="mlp", query_positions="learned")
    load_saim(other, official(one), encoder_only=True)
    assert torch.equal(one.encoder.features(images(2)), other.encoder.features(images(2)))


@pytest.mark.parametrize("query_positions", ["sincos", "learned"])
def test_positions_are_resampled_for_another_image_size(query_positions: str) -> None:
    one, other = build(seed=1), build(seed=2, image_size=24, query_positions=query_positions)
    load_saim(other, official(one))
    pos_embed = one.encoder.module.pos_embed
    table = resample_positions(pos_embed, old=one.encoder.grid, new=other.encoder.grid, num_prefix=1)
    assert torch.equal(other.encoder.module.pos_embed, table)
    expected = table[0, 1:] if query_positions == "learned" else sb.parts.sincos_table(sb.Grid(6, 6), 16)
    torch.testing.assert_close(other.reader.decoder.positions.table.data, expected)
    assert torch.isfinite(outputs(other, images(2, 24))[0])


def test_learned_positions_of_queries_start_as_the_table() -> None:
    one, other = build(seed=1), build(seed=2, query_positions="learned")
    load_saim(other, official(one))
    torch.testing.assert_close(outputs(one, images(2)), outputs(other, images(2)), rtol=0, atol=1e-6)


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__delitem__(name)


def with_one(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__setitem__(name, value)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"depth": 6}, None, r"the checkpoint lacks encoder.module.blocks.4.\S+ \(24 such\)"),
        ({"depth": 2}, None, r"the objective has no encoder.module.blocks.2.\S+ \(24 such\)"),
        ({"query_depth": 4}, None, r"the checkpoint lacks reader.decoder.layers.2.block.\S+ \(24 such\)"),
        ({"query_depth": 1}, None, r"the objective has no reader.decoder.layers.1.block.\S+ \(12 such\)"),
        ({"embed_dim": 24}, None, r"cls_token must have shape \(1, 1, 24\), but the checkpoint's has \(1, 1, 16\)"),
        ({"mlp_ratio": 2}, None, r"mlp.fc1.weight must have shape \(32, 16\), but the checkpoint's has \(64, 16\)"),
        ({"head": "mlp"}, None, r"the checkpoint lacks head.fc1.bias \(4 such\)"),
        ({"class_token": False}, None, r"the objective has no encoder\.module\.cls_token \(1 such\)"),
        ({"share": True}, None, r"query_blocks.0.\S+ differs from its blocks.0.\S+: build the decoder with blocks of"),
        ({}, without("norm.bias"), r"the checkpoint lacks encoder.module.norm.bias \(1 such\)"),
        ({}, without("pos_embed"), r"the checkpoint lacks encoder.module.pos_embed \(2 such\)"),
        ({}, without("blocks.1.attn.q.bias"), r"the checkpoint lacks blocks.1.attn.q.bias: it must hold projections"),
        ({}, without("blocks.1.attn.v.bias"), r"the checkpoint lacks blocks.1.attn.v.bias: it must hold projections"),
        ({}, without("query_blocks.1.norm1.bias"), r"lacks reader.decoder.layers.1.block.norm1.bias \(1 such\)"),
        ({}, without("prediction_head.bias"), r"the checkpoint lacks head.bias \(1 such\)"),
        ({}, with_one("mask_token", torch.zeros(1)), r"the objective has no encoder.module.mask_token \(1 such\)"),
        ({}, with_one("blocks.0.attn.k.bias", torch.zeros(8)), r"projections must have one shape, got .*k.bias \(8,\)"),
        ({}, with_one("pos_embed", torch.zeros(1, 15, 16)), r"table of shape \(1, 15, 16\) must be \[1, 1 \+ N, D\]"),
        ({}, with_one("pos_embed", torch.zeros(17, 16)), r"table of shape \(17, 16\) must be \[1, 1 \+ N, D\]"),
        ({}, with_one("pos_embed", torch.zeros(1, 17, 16)), r"not the fixed sine-cosine table: .*positions='learned'"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(options: dict, change, message: str) -> None:
    state = official(build(seed=1))
    if change is not None:
        change(state)
    other = build(seed=2, **options)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_saim(other, state)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_shared_decoder_refuses_query_blocks_that_no_block_equals() -> None:
    state = official(build(seed=1, share=True))
    state["query_blocks.4.norm1.bias"] = state["blocks.3.norm1.bias"]
    with pytest.raises(ValueError, match=r"has query_blocks.4.norm1.bias and no blocks.4.norm1.bias"):
        load_saim(build(seed=2, share=True), state)
