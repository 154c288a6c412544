"""The leak test on overlapping blocks, several masks of one image, views, sums and shared passes."""

import dataclasses

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.testing import LeakError, assert_no_leak
from ssl_blocks.testing.leak_case import visible
from ssl_blocks.values import gather_tokens
from tests.recipes import DIM, build, images

BLOCKS = torch.tensor([[0, 1, 4, 5], [5, 6, 9, 10], [2, 3, 6, 7]])  # 2x2 squares of a 4x4 grid; 5 and 6 lie in two
CONTEXT = torch.tensor([8, 12, 13, 14])  # 11 and 15 are neither given nor predicted


class Blocks(sb.Objective):
    """I-JEPA in small: blocks that overlap, each predicted by itself from one context, in features of a teacher."""

    def __init__(self, leak: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        base = build(sb.SquarePartitioner(sides=(2,)), image_size=8, depth=2)
        self.encoder, self.tokenizer, self.leak = base.encoder, base.tokenizer, leak
        self.target = sb.EncoderTarget(sb.MovingAverage(self.encoder, momentum=0.9))
        self.predictor = nn.TransformerEncoderLayer(DIM, 2, 32, dropout=0.0, batch_first=True)
        self.places = nn.Parameter(torch.randn(16, DIM))

    def draw(self, images, *, generator=None):
        turn = torch.randint(2, (len(images), 1), generator=generator)  # upside down, or not
        blocks, context = BLOCKS.flatten().expand(len(images), -1), CONTEXT.expand(len(images), -1)
        return torch.where(turn == 0, blocks, 15 - blocks), torch.where(turn == 0, context, 15 - context)

    def forward(self, images, draw=None):
        index, context = self.draw(images) if draw is None else draw
        targets = gather_tokens(self.target(images), index)
        given = torch.zeros(len(images), 16, dtype=torch.bool).scatter(1, context, True)
        seen = context
        if self.leak == "context":
            seen = torch.cat([context, index[:, :1]], 1)
        if self.leak == "hidden":
            seen = torch.cat([context, torch.where(context[:, :1] < 8, 0, 15)], 1)
        tokens = self.encoder.embed(gather_tokens(self.tokenizer(images), seen))
        states = self.encoder.encode(tokens, seen).final
        asked = self.places[index].unflatten(1, (3, 4)).flatten(0, 1)  # blocks do not see each other
        if self.leak == "teacher":
            asked = asked + targets.unflatten(1, (3, 4)).flatten(0, 1).detach()
        known = states.repeat_interleave(3, 0)
        rows = self.predictor(torch.cat([known, asked], 1))[:, known.shape[1] :]
        rows = rows.unflatten(0, (len(images), 3)).flatten(1, 2)
        step = torch.ones_like(index)
        if self.leak == "steps":
            step = 1 + torch.arange(3).repeat_interleave(4).expand_as(index)
        is_target = torch.ones_like(index, dtype=torch.bool)
        loss = sb.predicted_smooth_l1(rows, targets, is_target)
        return sb.ObjectiveOutput(loss, rows, targets, index, step, is_target, (index, context), given=given)


def check(objective, batch):
    return assert_no_leak(objective, batch, generator=torch.Generator().manual_seed(0), draws=2)


def test_blocks_that_overlap_and_tokens_that_are_neither_given_nor_predicted_pass():
    assert check(Blocks(), images(2, 8)).passed == ("Blocks",)


@pytest.mark.parametrize(
    ("leak", "message"),
    [
        ("context", r"by gradient: .* depends on position \d+ of step 1"),
        ("hidden", "depends on position .* of tokens that are neither given nor predicted"),
        ("teacher", "by noise: .* changes with pixels of"),
        ("steps", "does not depend on position .* of step 1, which it should see"),
    ],
)
def test_a_leak_into_blocks_is_found(leak, message):
    with pytest.raises(LeakError, match=message):
        check(Blocks(leak), images(2, 8))


class ManyMasks(sb.Objective):
    """Two masks of one image, as in data2vec 2.0: what the one hides, the other gives."""

    def __init__(self, *, by_row: bool = True, mixed: bool = False) -> None:
        super().__init__()
        base = build(sb.SquarePartitioner(sides=(2,)), image_size=8, depth=1)
        self.encoder, self.tokenizer, self.target = base.encoder, base.tokenizer, base.target
        self.places, self.head = nn.Parameter(torch.randn(16, DIM)), nn.Linear(DIM, 12)
        self.by_row, self.mixed = by_row, mixed

    def draw(self, images, *, generator=None):
        order = torch.rand(len(images), 16, generator=generator).argsort(1)
        return torch.stack([order, order.flip(1)], 1)  # given first, eight of each

    def forward(self, images, draw=None):
        draw = self.draw(images) if draw is None else draw
        patches, rows = self.tokenizer(images), []
        for given, hidden in (half.split(8, dim=1) for half in draw.unbind(1)):
            states = self.encoder.encode(self.encoder.embed(gather_tokens(patches, given)), given).final
            rows.append(self.head(states.mean(1, keepdim=True) + self.places[hidden]))
        if self.mixed:
            rows[0] = rows[0] + rows[1].mean(1, keepdim=True)
        index, predictions = draw[:, :, 8:].flatten(1), torch.cat(rows, 1)
        seen = torch.zeros(len(images), 2, 16, dtype=torch.bool).scatter(2, draw[:, :, :8], True)
        targets = gather_tokens(self.target(images), index)
        is_target = torch.ones_like(index, dtype=torch.bool)
        loss = sb.predicted_mse(predictions, targets, is_target)
        given = seen.repeat_interleave(8, dim=1) if self.by_row else None
        return sb.ObjectiveOutput(loss, predictions, targets, index, is_target.long(), is_target, draw, given=given)


def test_rows_of_several_masks_say_what_each_may_see():
    check(ManyMasks(), images(2, 8))
    with pytest.raises(LeakError, match=r"depends on position \d+ of step 1, as its row of given has it"):
        check(ManyMasks(mixed=True), images(2, 8))
    with pytest.raises(LeakError, match=r"depends on position \d+ of step 1"):  # else all that is predicted is hidden
        check(ManyMasks(by_row=False), images(2, 8))


class Teacher(nn.Module):
    """Features of the patches of every global view, view after view."""

    def __init__(self, encoder):
        super().__init__()
        self.features = sb.EncoderTarget(sb.MovingAverage(encoder, momentum=0.9))

    def forward(self, views):
        return torch.cat([self.features(view) for view in views.images[: views.num_global]], 1)


class MaskedViews:
    """A pass of the student over global views whose masked tokens are blank."""

    def __init__(self, encoder, tokenizer, *, masked=True):
        self.encoder, self.tokenizer, self.masked = encoder, tokenizer, masked

    def draw(self, images, *, generator=None):
        shape = (images.batch, images.num_global, 16)
        return torch.rand(shape, generator=generator).argsort(-1) < 6

    def __call__(self, images, draw):
        found, index = [], torch.arange(16).expand(images.batch, -1)
        for view, hidden in zip(images.images, draw.unbind(1), strict=False):
            tokens = self.encoder.embed(self.tokenizer(view))
            tokens = tokens.masked_fill(hidden[..., None], 0.0) if self.masked else tokens
            found.append(self.encoder.encode(tokens, index).final)
        return torch.cat(found, 1), draw.flatten(1)


class MaskedTokens(sb.Objective):
    """iBOT in small: says of masked tokens of views what a teacher says that sees them."""

    takes_views = True

    def __init__(self, encoder, tokenizer, *, reads_shared=False, masked=True):
        super().__init__()
        self.encoder, self.tokenizer, self.target = encoder, tokenizer, Teacher(encoder)
        self.head, self.reads_shared = nn.Linear(DIM, DIM), reads_shared
        self.own = None if reads_shared else MaskedViews(encoder, tokenizer, masked=masked)

    def draw(self, images, *, generator=None):
        return None if self.own is None else self.own.draw(images, generator=generator)

    def forward(self, images, draw=None, shared=None):
        states, hidden = self.own(images, draw) if shared is None else shared
        rows, targets = self.head(states), self.target(images)
        index = torch.arange(rows.shape[1]).expand(images.batch, -1)
        loss = sb.predicted_mse(rows, targets, hidden)
        return sb.ObjectiveOutput(loss, rows, targets, index, hidden.long(), hidden, draw)


class Together(sb.Objective):
    """Makes the features of two views the same: a joint embedding."""

    takes_views = True

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def draw(self, images, *, generator=None):
        return None

    def forward(self, images, draw=None):
        one, other = (self.encoder.features(view) for view in images.images[:2])
        rows = (one - other).square().mean(-1)[:, None, None]
        none = torch.zeros(images.batch, 1, dtype=torch.long)
        return sb.ObjectiveOutput(rows.mean(), rows, torch.zeros_like(rows), none, none, none == 0, None)


def views() -> sb.Views:
    return sb.Views((images(2, 8), images(2, 8, seed=2), images(2, 4, seed=3)), num_global=2)


def parts():
    base = build(sb.SquarePartitioner(sides=(2,)), image_size=8, depth=1)
    return base.encoder, base.tokenizer


def test_masked_tokens_of_views_pass_and_a_mask_that_hides_nothing_is_found():
    check(MaskedTokens(*parts()), views())
    with pytest.raises(LeakError, match=r"depends on position \d+ of step 1"):
        check(MaskedTokens(*parts(), masked=False), views())


def repeated(draw, images):
    return draw[torch.arange(images.batch) % len(draw)]


def test_a_look_at_the_same_place_of_the_other_view_is_a_leak_where_it_is_masked_there():
    objective = MaskedTokens(*parts())
    encoder = objective.encoder

    class Peeking(MaskedViews):
        def __call__(self, images, draw):
            states, hidden = super().__call__(images, draw)
            first = self.tokenizer(images.images[1]).mean((2, 3, 4))[:, :1, None]
            return states + first * torch.linspace(1, 2, DIM), hidden

    objective.own = Peeking(encoder, objective.tokenizer)
    batch = views()
    masked = torch.zeros(2, 2, 16, dtype=torch.bool)
    masked[:, 0, :6] = masked[:, 1, 10:] = True
    objective.draw = lambda images, generator=None: repeated(masked, images)
    check(objective, batch)  # the first token of the second view is given
    objective.draw = lambda images, generator=None: repeated(masked.flip(1), images)
    with pytest.raises(LeakError, match=r"depends on position 16 of step 1"):
        check(objective, batch)


@pytest.mark.parametrize("masked", [True, False])
def test_a_sum_is_looked_into_through_the_pass_that_it_shares(masked):
    encoder, tokenizer = parts()
    both = sb.WeightedSum(
        {"dino": Together(encoder), "ibot": MaskedTokens(encoder, tokenizer, reads_shared=True)},
        exports="ibot",
        shared=MaskedViews(encoder, tokenizer, masked=masked),
    )
    if not masked:
        with pytest.raises(LeakError, match=r"^ibot: by gradient: .* depends on position"):
            check(both, views())
        return
    report = check(both, views())
    assert report.passed == ("ibot",)
    assert "Together has no tokenizer and no target: it predicts nothing of patches" in report.not_applicable["dino"]


def test_of_an_objective_of_single_images_the_first_view_is_looked_at():
    encoder, tokenizer = parts()
    both = sb.WeightedSum({"dino": Together(encoder), "simmim": sb.simmim(encoder=encoder, tokenizer=tokenizer)})
    assert check(both, views()).passed == ("simmim",)


def test_a_joint_embedding_says_why_nothing_can_leak():
    with pytest.raises(ValueError, match=r"so no pixel is hidden .* \(a joint embedding compares whole views\)"):
        check(Together(parts()[0]), views())


def test_a_puzzle_sees_all_but_dropped_patches():
    tokenizer = sb.PatchTokenizer(image_size=8, patch_size=2)
    encoder = sb.encoders.PostNormTransformer(grid=4, patch=2, depth=1, num_heads=2)
    puzzle = sb.PatchPuzzle(encoder=encoder, tokenizer=tokenizer, patch_dropout=0.4)
    check(puzzle, images(2, 8))
    puzzle.encoder.embed = lambda patches: type(encoder).embed(encoder, patches).roll(1, 1)  # dropped too late
    with pytest.raises(LeakError, match="as its row of given has it"):
        check(puzzle, images(2, 8))


def test_an_index_of_no_position_is_one_error():
    objective = Blocks()
    objective.register_forward_hook(lambda module, args, out: dataclasses.replace(out, index=out.index + 8))
    with pytest.raises(ValueError, match=r"index must name positions from 0 to 15, got 8\.\.|index must name"):
        check(objective, images(2, 8))


def test_a_position_that_is_predicted_twice_is_seen_after_the_last_time():
    index, step = torch.tensor([[0, 1, 0, 2, 3]]), torch.tensor([[1, 2, 3, 4, 5]])
    rows = torch.zeros(1, 5, 1)
    is_target = torch.tensor([[True, True, True, True, False]])  # position 3 is given
    out = sb.ObjectiveOutput(torch.tensor(0.0), rows, rows, index, step, is_target, None)
    step_of, may, must = visible(out, 4, 1)
    assert step_of.tolist() == [[3, 2, 4, -1]]
    assert [row.nonzero().flatten().tolist() for row in may[0, :4]] == [[3], [3], [1, 3], [0, 1, 3]]
    assert torch.equal(may, must)
    given = torch.tensor([[False, False, False, True]])
    assert torch.equal(visible(dataclasses.replace(out, given=given), 4, 1)[1], may)
    assert visible(dataclasses.replace(out, given=~given | given.roll(1)), 4, 1)[0].tolist() == [[3, 2, 4, 2**40]]
