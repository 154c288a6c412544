"""simmim equals SimMIM written out in raster order; what is hidden has no say."""

import dataclasses

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.testing import LeakError, assert_no_leak
from tests.recipes import gradients, images
from tests.reference import cut_patches, pixel_target, subset_ids

PREFIXES = [{}, {"class_token": True, "reg_tokens": 1}]


def build(image_size=16, **options):
    torch.manual_seed(0)
    size = {"image_size": image_size, "patch_size": 2}
    encoder = sb.encoders.timm_vit(**size, depth=2, embed_dim=16, num_heads=2, **options)
    return sb.simmim(encoder=encoder, tokenizer=sb.PatchTokenizer(**size))


def written_out(objective, batch, is_hidden):
    """Tokens in raster order; a mask token stands wherever a patch is hidden; all see all."""
    encoder, vit = objective.encoder, objective.encoder.module
    tokens = torch.where(is_hidden[..., None], objective.reader.query, encoder.embed(batch))
    raster = torch.arange(tokens.shape[1]).expand(len(batch), -1)
    states = encoder.encode(tokens, raster).hidden[-1]
    predictions = objective.head(vit.norm(states)[:, encoder.num_prefix :])
    targets = pixel_target(cut_patches(batch, (2, 2)), normalize=False)
    loss = (predictions - targets).abs()[is_hidden].mean()
    return loss, predictions, targets


@pytest.mark.parametrize("options", PREFIXES)
def test_it_equals_simmim_in_raster_order(options):
    objective, batch = build(**options), images(3)
    draw = objective.draw(batch, generator=torch.Generator().manual_seed(0))
    is_hidden = torch.zeros(3, 64).scatter(1, draw.order, draw.step.float()) == 1
    loss, found = gradients(objective, batch, draw)
    objective.zero_grad()
    expected, predictions, targets = written_out(objective, batch, is_hidden)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    out = objective(batch, draw)
    torch.testing.assert_close(out.predictions, sb.values.gather_tokens(predictions, out.index))
    torch.testing.assert_close(out.targets, sb.values.gather_tokens(targets, out.index))
    assert out.is_target.all()
    assert sorted(out.index[0].tolist()) == is_hidden[0].nonzero().flatten().tolist()


def test_it_hides_squares_of_two_tokens():
    objective = build()
    draw = objective.draw(images(2), generator=torch.Generator().manual_seed(0))
    assert draw.step_sizes == (24, 40)  # of 16 squares int(16 * .4) = 6 are kept
    is_hidden = draw.put(draw.step).reshape(2, 4, 2, 4, 2)
    assert torch.equal(is_hidden, is_hidden[:, :, :1, :, :1].expand_as(is_hidden))
    squares = is_hidden[:, :, 0, :, 0].flatten(1)
    assert squares[0].tolist() == subset_ids(squares[0].argsort(stable=True).argsort().tolist(), (6, 10))
    assert not torch.equal(squares[0], squares[1])


def test_the_mask_token_is_trained_and_spared_by_weight_decay():
    objective = build()
    _, found = gradients(objective, images(2))
    assert found["reader.query"].abs().max() > 0
    assert "reader.query" in objective.no_weight_decay()


def prove(objective):
    assert_no_leak(objective, images(2, 8), generator=torch.Generator().manual_seed(0), draws=2)


@pytest.mark.parametrize("options", PREFIXES)
def test_nothing_leaks(options):
    prove(build(8, **options))


class Whole(sb.OrderedSerializer):
    """Forgets that steps have a size, so that masks alone keep hidden patches apart."""

    def __call__(self, segments, *, generator=None):
        return dataclasses.replace(super().__call__(segments, generator=generator), step_sizes=None)


class Open(sb.FullMask):
    """Lets one of its masks pass everything."""

    def __init__(self, name):
        super().__init__(feedback=True)
        self.name = name

    def __call__(self, *arguments):
        masks = super().__call__(*arguments)
        return dataclasses.replace(masks, **{self.name: getattr(masks, self.name) | True})


def test_nothing_leaks_where_masks_alone_keep_hidden_patches_apart():
    objective = build(8)
    objective.serializer = Whole()
    prove(objective)


@pytest.mark.parametrize("name", ["source", "memory"])
def test_a_leak_is_found(name):
    objective = build(8)
    objective.serializer, objective.mask = Whole(), Open(name)
    with pytest.raises(LeakError, match="depends on position"):
        prove(objective)
