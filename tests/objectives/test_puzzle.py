"""The patch puzzle: what it computes, what has a say in it, and which encoders it refuses."""

import re

import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn

import ssl_blocks as sb
from ssl_blocks.objectives import puzzle as puzzle_module
from ssl_blocks.testing import assert_no_leak
from tests.recipes import gradients, images
from tests.reference import cross_entropy, cut_grid, top_accuracy

NUM = 9


def tokenizer_of(size: int = 17) -> sb.PatchTokenizer:
    return sb.PatchTokenizer.from_grid(image_size=size, grid=3, crop=1)  # cells of 5 pixels, patches of 4


def vit(**options) -> sb.encoders.TimmViT:
    size = {"image_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "positions": "none"}
    return sb.encoders.timm_vit(**(size | options))


def original(**options) -> sb.encoders.PostNormTransformer:
    return sb.encoders.PostNormTransformer(**({"grid": 3, "patch": 4, "depth": 2, "num_heads": 4} | options))


ENCODERS = {"original": original, "vit": vit, "class token": lambda: vit(class_token=True, reg_tokens=1)}


def build(kind: str = "vit", *, seed: int = 0, **parts) -> sb.PatchPuzzle:
    torch.manual_seed(seed)
    return sb.PatchPuzzle(**({"encoder": ENCODERS[kind](), "tokenizer": tokenizer_of()} | parts))


def batch(number: int = 3, seed: int = 1) -> Tensor:
    return images(number, 17, seed=seed)


def dropping(*positions: int, number: int = 3) -> sb.objectives.PuzzleDraw:
    is_dropped = torch.zeros(number, NUM, dtype=torch.bool)
    is_dropped[:, list(positions)] = True
    return sb.objectives.PuzzleDraw(is_dropped)


# --- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODERS)
def test_it_equals_the_puzzle_written_out(kind: str) -> None:
    puzzle, x = build(kind, patch_dropout=0.3).eval(), batch()
    draw = puzzle.draw(x, generator=torch.Generator().manual_seed(0))
    assert 0 < draw.is_dropped.sum() < draw.is_dropped.numel()
    out = puzzle(x, draw)
    logits = []
    for image, dropped in zip(cut_grid(x, (3, 3), 1), draw.is_dropped, strict=True):
        rows = [
            torch.zeros(1, 1, puzzle.encoder.dim) if gone else puzzle.encoder.embed(patch[None, None])
            for patch, gone in zip(image, dropped, strict=True)
        ]
        final = puzzle.encoder.encode(torch.cat(rows, 1), None).final[0, puzzle.encoder.num_prefix :]
        logits.append(final @ puzzle.head.weight.T + puzzle.head.bias)
    expected = torch.stack(logits)
    torch.testing.assert_close(out.predictions, expected, rtol=1e-4, atol=1e-5)
    targets = torch.eye(NUM).expand(3, -1, -1)
    assert out.loss.item() == pytest.approx(cross_entropy(expected, targets, ~draw.is_dropped), rel=1e-4)
    for k in (1, 3, 5):
        assert out.metrics[f"puzzle_top{k}"].item() == pytest.approx(top_accuracy(expected, k))
    assert torch.equal(out.targets, targets)
    assert torch.equal(out.is_target, ~draw.is_dropped)
    assert out.index.tolist() == [list(range(NUM))] * 3
    assert not out.step.any()
    assert out.draw is draw


def test_accuracies_count_all_tokens_and_nothing_else() -> None:
    class Knows(nn.Module):
        """Right about the first four positions, and names the next one for the others."""

        def forward(self, x: Tensor) -> Tensor:
            return 9.0 * torch.eye(NUM)[[0, 1, 2, 3, 5, 6, 7, 8, 4]].expand(len(x), -1, -1) + 0 * x.mean()

    puzzle = build(head=Knows())
    for draw in (dropping(), dropping(0, 1), dropping(4, 5, 6, 7, 8)):
        assert puzzle(batch(), draw).metrics["puzzle_top1"].item() == pytest.approx(4 / 9)


def test_equal_logits_are_right_by_chance_only() -> None:
    puzzle = build()
    nn.init.zeros_(puzzle.head.weight)
    nn.init.zeros_(puzzle.head.bias)
    out = puzzle(batch(), dropping())
    assert out.loss.item() == pytest.approx(torch.tensor(9.0).log().item())
    assert [out.metrics[f"puzzle_top{k}"].item() for k in (1, 3, 5)] == pytest.approx([1 / 9, 3 / 9, 5 / 9])


def test_few_patches_have_fewer_guesses_than_five() -> None:
    tokenizer = sb.PatchTokenizer(image_size=8, patch_size=4)
    puzzle = sb.PatchPuzzle(encoder=original(grid=2), tokenizer=tokenizer)
    assert puzzle(images(2, 8)).metrics["puzzle_top5"].item() == 1


def test_where_all_are_dropped_the_loss_is_zero() -> None:
    puzzle = build("original")
    loss, found = gradients(puzzle, batch(), dropping(*range(NUM)))
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in found.values())


def test_patches_are_dropped_one_by_one_and_the_generator_decides() -> None:
    puzzle, x = build(patch_dropout=0.25), torch.zeros(2000, 3, 17, 17)
    one, same, other = (puzzle.draw(x, generator=torch.Generator().manual_seed(s)).is_dropped for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert one.float().mean(0).min() > 0.2
    assert one.sum(1).float().var().item() == pytest.approx(NUM * 0.25 * 0.75, rel=0.15)  # binomial: not a fixed number
    assert not build().draw(x).is_dropped.any()


def test_what_is_measured_drops_nothing() -> None:
    puzzle, x = build(patch_dropout=0.9).eval(), batch()
    expected = puzzle(x, dropping()).metrics
    assert puzzle.measure(x) == expected
    assert puzzle.measure(x) == expected
    assert set(expected) == {"puzzle_top1", "puzzle_top3", "puzzle_top5"}


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_parameter_gets_a_gradient_and_the_puzzle_is_learned(kind: str) -> None:
    puzzle, x = build(kind), batch(4)
    first, _ = gradients(puzzle, x, dropping(2, number=4))
    optimizer = torch.optim.AdamW(puzzle.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        out = puzzle(x, dropping(number=4))
        out.loss.backward()
        optimizer.step()
        if out.loss < 0.3 * first and out.metrics["puzzle_top1"] > 0.9:
            break
    assert out.loss < 0.3 * first
    assert out.metrics["puzzle_top1"] > 0.9


def test_an_mlp_may_classify() -> None:
    encoder = vit()
    puzzle = build(encoder=encoder, head=Mlp(encoder.dim, hidden_features=20, out_features=NUM))
    gradients(puzzle, batch())


def test_bfloat16_on_cpu_is_close_to_single_precision() -> None:
    puzzle, x = build("original").eval(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        half = puzzle(x, dropping(3))
    torch.testing.assert_close(half.loss, puzzle(x, dropping(3)).loss, rtol=0.02, atol=0)
    assert half.loss.dtype == torch.float32


# --- who has a say ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODERS)
def test_permuting_patches_permutes_logits(kind: str) -> None:
    puzzle, x = build(kind).eval(), batch()
    order = torch.tensor([4, 0, 8, 2, 6, 1, 3, 7, 5])
    shuffled = puzzle.tokenizer.untokenize(puzzle.tokenizer(x)[:, order])
    expected = puzzle(x, dropping(4, 2)).predictions[:, order]
    found = puzzle(shuffled, dropping(0, 3)).predictions  # the places where patches 4 and 2 lie now
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, puzzle(x, dropping(0, 3)).predictions, atol=1e-3)


class WithPositions(nn.Module):
    """A token encoder that adds a table by a name that nobody would suspect."""

    def __init__(self, base: sb.encoders.TimmViT, *, by_slot: bool = False) -> None:
        super().__init__()
        self.base, self.by_slot = base, by_slot
        self.secret = nn.Parameter(torch.randn(NUM, base.dim))
        self.dim, self.depth, self.grid, self.patch = base.dim, base.depth, base.grid, base.patch
        self.channels, self.num_prefix = base.channels, base.num_prefix

    @property
    def module(self) -> nn.Module:
        return self

    @property
    def norm(self) -> nn.Module:
        return self.base.norm

    def embed(self, x: Tensor) -> Tensor:
        return self.base.embed(x)

    def encode(self, tokens: Tensor, index: Tensor | None, mask: Tensor | None = None) -> sb.Encoded:
        if self.by_slot:
            tokens = tokens + self.secret[: tokens.shape[1]]
        elif index is not None:
            tokens = tokens + self.secret[index]
        return self.base.encode(tokens, index, mask)

    def features(self, x: Tensor) -> Tensor:
        return self.base.features(x)


def test_an_encoder_with_positions_breaks_that_property() -> None:
    """The control: an encoder that slips past the refusal does not pass the test above."""
    puzzle = build().eval()
    puzzle.encoder = WithPositions(vit(), by_slot=True).eval()
    x = batch()
    order = torch.tensor([4, 0, 8, 2, 6, 1, 3, 7, 5])
    shuffled = puzzle.tokenizer.untokenize(puzzle.tokenizer(x)[:, order])
    expected = puzzle(x, dropping()).predictions[:, order]
    assert not torch.allclose(puzzle(shuffled, dropping()).predictions, expected, atol=1e-2)


def check_dropped_patches_have_no_say(puzzle: sb.PatchPuzzle) -> None:
    """By gradient and by new pixels; the others must be felt."""
    x, tokenizer, draw = batch(), puzzle.tokenizer, dropping(1, 5)
    x.requires_grad_()
    out = puzzle(x, draw)
    out.loss.backward()
    felt = tokenizer(x.grad).abs().flatten(2).amax(-1) > 0
    assert torch.equal(felt, ~draw.is_dropped), "gradient"
    lost = tokenizer.untokenize(tokenizer(torch.ones_like(x))) == 0
    assert not x.grad[lost].any()  # what is cropped, and what the grid leaves over
    changed = tokenizer.untokenize(torch.full((3, NUM, 3, 4, 4), 5.0) * draw.is_dropped[:, :, None, None, None])
    with torch.no_grad():
        torch.testing.assert_close(puzzle(x + changed, draw).predictions, out.predictions, msg="pixels")
        moved = puzzle(x + changed, dropping()).predictions - puzzle(x, dropping()).predictions
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ENCODERS)
def test_dropped_patches_have_no_say_and_get_no_gradient_and_the_others_do(kind: str) -> None:
    check_dropped_patches_have_no_say(build(kind).eval())


@pytest.mark.parametrize(("by_gradient", "message"), [(True, "gradient"), (False, "pixels")])
def test_a_dropped_patch_that_has_a_say_is_found(by_gradient: bool, message: str) -> None:
    class Peeking(sb.PatchPuzzle):
        """Wrong: dropped patches reach the loss."""

        def forward(self, images, draw=None):
            out = super().forward(images, draw)
            pixels = images if by_gradient else images.detach()
            seen = self.encoder.encode(self.encoder.embed(self.tokenizer(pixels)), None).final
            predictions = out.predictions + seen.mean(1, keepdim=True)[..., :NUM]
            loss = sb.predicted_cross_entropy(predictions, out.targets, out.is_target)
            return sb.ObjectiveOutput(**{**vars(out), "loss": loss, "predictions": predictions})

    honest = build()
    peeking = Peeking(encoder=honest.encoder, tokenizer=honest.tokenizer).eval()
    with pytest.raises(AssertionError, match=message):
        check_dropped_patches_have_no_say(peeking)


def test_logits_of_dropped_patches_get_no_gradient() -> None:
    puzzle = build()
    out = puzzle(batch(), dropping(0, 7))
    (gradient,) = torch.autograd.grad(out.loss, out.predictions)
    assert torch.equal((gradient != 0).any(-1), out.is_target)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_dropped_patch_stays_in_the_sequence_and_is_attended_to(kind: str) -> None:
    puzzle, x = build(kind).eval(), batch()
    seen = []
    encode = puzzle.encoder.encode

    def spy(tokens: Tensor, index: Tensor | None, mask: Tensor | None = None) -> sb.Encoded:
        seen.append(tokens)
        return encode(tokens, index, mask)

    puzzle.encoder.encode = spy  # type: ignore[method-assign]
    out = puzzle(x, dropping(1, 5))
    assert torch.equal((seen[0] == 0).all(-1), out.draw.is_dropped)
    without = torch.cat([seen[0][:, [0, 2, 3, 4, 6, 7, 8]]], 1)
    shorter = puzzle.head(encode(without, None).final[:, puzzle.encoder.num_prefix :])
    assert not torch.allclose(out.predictions[:, [0, 2, 3, 4, 6, 7, 8]], shorter, atol=1e-3)


def check_images_do_not_see_each_other(puzzle: sb.PatchPuzzle) -> None:
    x = batch()
    together = puzzle(x, dropping(2)).predictions
    for i in range(3):
        alone = puzzle(x[i : i + 1], dropping(2, number=1)).predictions
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)
    x.requires_grad_()
    puzzle(x, dropping()).predictions[1].sum().backward()
    assert x.grad[1].any()
    assert not x.grad[[0, 2]].any()


@pytest.mark.parametrize("kind", ENCODERS)
def test_images_do_not_see_each_other(kind: str) -> None:
    check_images_do_not_see_each_other(build(kind).eval())


def test_images_that_see_each_other_are_found() -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0))[..., :NUM]

    with pytest.raises(AssertionError):
        check_images_do_not_see_each_other(build(head=Mixing()).eval())


def test_a_grid_with_a_remainder_leaks_nothing_elsewhere() -> None:
    tokenizer = sb.PatchTokenizer.from_grid(image_size=17, grid=4, crop=1)
    encoder = vit(patch_size=3)
    objective = sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SquarePartitioner(sides=(2,)),
        target=sb.PixelTarget(tokenizer),
        reader=sb.DecoderReader(
            sb.LastLayerRouter(decoder_depth=1), sb.SegmentDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2)
        ),
    )
    assert_no_leak(objective, batch(2), draws=2)
    assert objective.target.to_pixels(objective.target(batch(2)), batch(2)).shape == (2, 3, 17, 17)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_table_is_refused_by_name(positions: str, device: str) -> None:
    with torch.device(device):
        encoder = vit(positions=positions)
        with pytest.raises(
            ValueError, match=re.escape("TimmViT owns positions (pos_embed): a puzzle's encoder must not")
        ):
            sb.PatchPuzzle(encoder=encoder, tokenizer=tokenizer_of())


def test_positions_of_another_name_are_refused_by_what_they_do() -> None:
    with pytest.raises(ValueError, match="WithPositions encodes the same tokens differently at other positions: a p"):
        build(encoder=WithPositions(vit()))
    with pytest.raises(ValueError, match=r"in another order, even without positions: .*positions='none'"):
        build(encoder=WithPositions(vit(), by_slot=True))


@pytest.mark.parametrize(
    ("name", "owns"),
    [
        ("pos_embed", True),
        ("encoder.pos_embedding", True),
        ("embeddings.position_embeddings", True),
        ("positional_embedding", True),
        ("pos_enc", True),
        ("rope.freqs", True),
        ("rope_embeddings", True),
        ("blocks.0.rel_pos.table", True),
        ("blocks.0.attn.relative_position_bias_table", True),
        ("patch_embed.proj.weight", False),
        ("compose_embed", False),
        ("blocks.0.proj.weight", False),
        ("posts", False),
    ],
)
def test_names_of_positions_are_known(name: str, owns: bool) -> None:
    assert bool(puzzle_module._POSITIONS.search(name)) is owns


def test_looking_at_an_encoder_leaves_it_as_it_was() -> None:
    encoder = original(dropout=0.5)
    encoder.blocks[1].eval()
    modes, state = [part.training for part in encoder.modules()], torch.get_rng_state()
    build_state = {name: value.clone() for name, value in encoder.state_dict().items()}
    sb.PatchPuzzle(encoder=encoder, tokenizer=tokenizer_of(), head=nn.Identity())
    assert [part.training for part in encoder.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, build_state[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_dropout_outside_of_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"patch_dropout={rate} must be at least 0 and below 1"):
        build(patch_dropout=rate)


def test_other_parts_that_do_not_fit_are_refused() -> None:
    one = sb.PatchTokenizer(image_size=4, patch_size=4)
    with pytest.raises(ValueError, match="grid 1x1 is one patch: a puzzle needs at least two"):
        sb.PatchPuzzle(encoder=original(grid=1), tokenizer=one)
    with pytest.raises(ValueError, match=re.escape("tokenizer has patch (5, 5), but the encoder was built for (4, 4)")):
        build(tokenizer=sb.PatchTokenizer.from_grid(image_size=17, grid=3))
    with pytest.raises(ValueError, match="do not fit this tokenizer"):
        build()(images(2, 16))
    with pytest.raises(ValueError, match="generator is on cpu"):
        build().draw(torch.zeros(1, 3, 17, 17, device="meta"), generator=torch.Generator())
