"""Checks of readers, targets and losses find what is wrong, and say so."""

import dataclasses

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.testing import RoleError, check_loss, check_reader, check_target
from tests.recipes import images

GRID = sb.Grid(4, 4)
ENCODER = {"image_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}


def vit(**options):
    torch.manual_seed(0)
    return sb.encoders.timm_vit(**ENCODER, **options)


# Readers


class Spoiled(nn.Module):
    """A query reader with something wrong."""

    def __init__(self, before=None, after=None):
        super().__init__()
        self.base, self.dim, self.before, self.after = sb.QueryReader(16), 16, before, after

    def forward(self, encoder, content, index, query_index, masks):
        if self.before is not None:
            content, index, query_index, masks = self.before(content, index, query_index, masks)
        out = self.base(encoder, content, index, query_index, masks)
        return out if self.after is None else self.after(out)


class Idle(Spoiled):
    def __init__(self):
        super().__init__()
        self.forgotten = nn.Linear(2, 2)


def seeing(content, index, query_index, masks):
    return content, index, query_index, dataclasses.replace(masks, memory=masks.memory | True)


def blind(content, index, query_index, masks):
    return content, index, query_index, dataclasses.replace(masks, memory=masks.memory & False)


def by_place(content, index, query_index, masks):
    """Positions by place in the sequence, not by index."""
    return content, torch.arange(index.shape[1]).expand_as(index), query_index, masks


def queries_by_place(content, index, query_index, masks):
    return content, index, torch.arange(query_index.shape[1]).expand_as(query_index), masks


def nowhere(content, index, query_index, masks):
    return content, index, query_index * 0, masks


def by_length(content, index, query_index, masks):
    return content * (1 if content.shape[1] < 16 else 2), index, query_index, masks


def dropping_out(out):
    return torch.nn.functional.dropout(out, 0.5)


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (Spoiled(before=seeing), "to hear nothing of content of step"),
        (Spoiled(before=blind), "content of step 0 to have a say in query"),
        (Spoiled(before=by_place), "content in another order to give the same predictions"),
        (Spoiled(before=queries_by_place), "queries in another order to give the same predictions in that order"),
        (Spoiled(before=nowhere), r"other predictions at other positions \(or has_positions=False\), got the same"),
        (Spoiled(before=by_length), "the whole sequence under masks to be read as its windows"),
        (Spoiled(after=lambda out: out - out.mean(0)), "image 0 alone to be read as in a batch"),
        (Spoiled(after=lambda out: out[..., :8]), r"predictions \[B, t, dim\] of shape \(3, 12, 16\)"),
        (Spoiled(after=lambda out: out / 0), "finite predictions"),
        (Spoiled(after=dropping_out), "the same predictions in a second call"),
        (Spoiled(after=torch.detach), "a gradient for every trained parameter, got none for base.query"),
        (Idle(), "got none for forgotten.weight, forgotten.bias"),
    ],
)
def test_broken_readers_are_found(reader, message):
    if "none for base" in message:
        reader.after = lambda out: out.detach() + 0 * out
    with pytest.raises(RoleError, match="reader (Spoiled|Idle): expected .*" + message):
        check_reader(reader, vit(class_token=True))


def test_a_reader_without_positions_passes_where_that_is_said():
    check_reader(Spoiled(before=nowhere), vit(), has_positions=False)
    with pytest.raises(RoleError, match="the same predictions at other positions, since has_positions=False"):
        check_reader(Spoiled(), vit(), has_positions=False)


# Targets


class Learned(nn.Module):
    dim = 16

    def __init__(self, change=None, dim=16, spoil_pictures=None):
        super().__init__()
        self.encoder, self.change, self.dim = vit(), change, dim
        if spoil_pictures is not None:
            self.to_pixels = spoil_pictures

    def forward(self, images):
        with torch.no_grad():
            found = self.encoder.embed(images)
        return found if self.change is None else self.change(self, images, found)


def repaint(target, images, found):
    images.mul_(2)
    return found


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Learned(lambda t, x, y: t.encoder.embed(x)), "values without a gradient to the target's own weights"),
        (Learned(lambda t, x, y: y - y.mean(0)), "an image alone to have the values that it has in a batch"),
        (Learned(lambda t, x, y: y[:, 1:]), r"values \[B, N, dim\] of shape \(3, 16, 16\)"),
        (Learned(dim=8), r"values \[B, N, dim\] of shape \(3, 16, 8\) and a floating type, got \(3, 16, 16\)"),
        (Learned(lambda t, x, y: y.long()), "got .* of torch.int64"),
        (Learned(lambda t, x, y: y / 0), "finite values"),
        (Learned(lambda t, x, y: y + torch.rand(1)), "values without a random choice, got a draw, with training=False"),
        (Learned(lambda t, x, y: nn.functional.dropout(y, 0.5, t.training)), "a draw, with training=True"),
        (Learned(lambda t, x, y: y + t.training), "the same values in every call, got others, with training=True"),
        (Learned(repaint), "images as they were"),
        (Learned(spoil_pictures=lambda y, x: x[:, :1]), "pictures of the images' size of shape"),
        (Learned(spoil_pictures=lambda y, x: x / 0), "finite pictures"),
    ],
)
def test_broken_targets_are_found(target, message):
    with pytest.raises(RoleError, match="target Learned: expected .*" + message):
        check_target(target, images(3, 8), GRID)


def test_an_honest_target_passes():
    assert check_target(Learned(), images(3, 8), GRID).not_applicable == {"pictures": "the target has no to_pixels"}


# Losses


def errors(p, t, is_target):
    return torch.where(is_target[..., None], p - t, 0.0).square().mean(-1)


def mean_of_means(p, t, is_target):
    return (errors(p, t, is_target).sum(1) / is_target.sum(1).clamp(min=1)).mean()


def masked_by_product(p, t, is_target):
    return ((p - t).square().mean(-1) * is_target).sum() / is_target.sum().clamp(min=1)


def dividing_by_zero(p, t, is_target):
    return errors(p, t, is_target).sum() / is_target.sum()


def of_all_rows(p, t, is_target):
    return (p - t).nan_to_num().square().mean()


def without_the_last(p, t, is_target):
    return sb.predicted_mse(p[:, :-1], t[:, :-1], is_target[:, :-1])


def of_rows(p, t, is_target):
    return errors(p, t, is_target)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (mean_of_means, "the mean over all rows of the batch that count, got a difference"),
        (masked_by_product, "a gradient at the rows that count, and 0 at others, which hold NaN"),
        (dividing_by_zero, "loss 0 and gradients of 0 where nothing counts, got loss nan"),
        (of_all_rows, "loss of_all_rows: expected "),
        (without_the_last, "loss without_the_last: expected "),
        (of_rows, r"the loss of shape \(\)"),
    ],
)
def test_broken_losses_are_found(loss, message):
    with pytest.raises(RoleError, match=message):
        check_loss(loss)


def test_one_image_is_not_enough():
    with pytest.raises(ValueError, match="images=1 of them must be at least 2"):
        check_target(Learned(), images(1, 8), GRID)
