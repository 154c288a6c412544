"""check_token_encoder finds what is wrong, says so, and leaves no trace."""

import dataclasses

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks.encoders import TimmViT, timm_vit
from ssl_blocks.testing import RoleError, RoleReport, check_token_encoder

SIZE = {"image_size": 8, "patch_size": 2, "depth": 2, "embed_dim": 16, "num_heads": 2}


def build(kind=TimmViT, **options):
    """An encoder of 4x4 tokens, seen by another adapter."""
    torch.manual_seed(0)
    return kind(timm_vit(**SIZE, **options).module)


def check(encoder, **options):
    return check_token_encoder(encoder, generator=torch.Generator().manual_seed(0), **options)


# Honest encoders pass


@pytest.mark.parametrize("options", [{}, {"class_token": True}, {"reg_tokens": 2}, {"positions": "learned"}])
def test_an_honest_encoder_passes(options):
    report = check(build(**options))
    assert isinstance(report, RoleReport)
    assert report.passed == (
        "members",
        "native output",
        "embedding",
        "features",
        "masks",
        "order",
        "subset",
        "positions",
        "input",
        "saving",
        "checkpointing",
    )
    assert report.not_applicable == {"compilation": "not asked for"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.passed = ()


def test_an_encoder_without_positions_passes_where_that_is_said():
    encoder = build(positions="none")
    assert "positions" in check(encoder, has_positions=False).passed
    with pytest.raises(RoleError, match="other positions give the same output: does encode use its index"):
        check(encoder)
    with pytest.raises(RoleError, match="other positions give another output, though has_positions=False"):
        check(build(), has_positions=False)


class Bare:
    """Not an nn.Module, and no more than the role asks for."""

    def __init__(self, base):
        self.base, self.module, self.norm = base, base.module, base.norm
        self.embed, self.encode, self.features = base.embed, base.encode, base.features
        for name in ("dim", "depth", "grid", "patch", "channels", "num_prefix"):
            setattr(self, name, getattr(base, name))


def test_an_encoder_of_ones_own_needs_no_more_than_the_role():
    encoder = Bare(build(class_token=True))
    report = check(encoder)
    assert report.not_applicable == {
        "native output": "no native output given",
        "checkpointing": "the encoder has no set_grad_checkpointing",
        "compilation": "not asked for",
    }
    assert "native output" in check(encoder, native=encoder.module.forward_features).passed


def test_double_precision_and_dropout_pass():
    check(build().double(), tolerance=1e-10)
    check(build(pos_drop_rate=0.5, proj_drop_rate=0.5, drop_path_rate=0.5))


def test_the_check_leaves_no_trace():
    encoder = build(class_token=True)
    encoder.train()
    encoder.module.norm.eval()
    encoder.module.norm.weight.grad = torch.ones(16)
    weights = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    trained = {name: p.requires_grad for name, p in encoder.named_parameters()}
    modes, state = [m.training for m in encoder.modules()], torch.get_rng_state()
    check_token_encoder(encoder)
    with pytest.raises(RoleError):
        check(encoder, native=lambda images: encoder.module.forward_features(images) + 1)
    assert all(torch.equal(weights[name], p) for name, p in encoder.named_parameters())
    assert trained == {name: p.requires_grad for name, p in encoder.named_parameters()}
    assert modes == [m.training for m in encoder.modules()]
    assert torch.equal(state, torch.get_rng_state())
    grads = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert grads == {"module.norm.weight"}
    assert torch.equal(encoder.module.norm.weight.grad, torch.ones(16))
    assert not encoder.grad_checkpointing


def test_the_surroundings_do_not_matter():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        check(build())


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="batch=1 must be at least 2"):
        check(build(), batch=1)


def test_an_encoder_error_is_an_assertion_error():
    assert issubclass(RoleError, AssertionError)


# Dishonest encoders do not


class DroppedMask(TimmViT):
    def encode(self, tokens, index, mask=None):
        return super().encode(tokens, index, None)


class MaskOfTheFirstImage(TimmViT):
    def encode(self, tokens, index, mask=None):
        return super().encode(tokens, index, None if mask is None else mask[:1])


class OpenClassToken(TimmViT):
    def encode(self, tokens, index, mask=None):
        if mask is not None:
            mask = mask.clone()
            mask[:, :, : self.num_prefix] = True
        return super().encode(tokens, index, mask)


class StrictMask(TimmViT):
    def encode(self, tokens, index, mask=None):
        if mask is not None:
            own = torch.eye(mask.shape[-1], dtype=torch.bool)
            mask = mask & (own | (torch.arange(mask.shape[-1]) != self.num_prefix + 3))
        return super().encode(tokens, index, mask)


class InvertedMask(TimmViT):
    def encode(self, tokens, index, mask=None):
        return super().encode(tokens, index, None if mask is None else ~mask)


class PositionsBySlot(TimmViT):
    def encode(self, tokens, index, mask=None):
        slots = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        return super().encode(tokens, None if index is None else slots, mask)


class PositionsAnyway(TimmViT):
    def encode(self, tokens, index, mask=None):
        slots = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        return super().encode(tokens, slots if index is None else index, mask)


class NoPositions(TimmViT):
    native = None

    def encode(self, tokens, index, mask=None):
        return super().encode(tokens, None, mask)


class MixedPatches(TimmViT):
    native = None

    def embed(self, x):
        tokens = super().embed(x)
        return tokens + 0.1 * tokens.roll(1, 1)


class BlurredImages(TimmViT):
    native = None

    def embed(self, x):
        return super().embed(nn.functional.avg_pool2d(x, 3, 1, 1) if x.ndim == 4 else x)


class BlindEmbedding(TimmViT):
    native = None

    def embed(self, x):
        return torch.zeros_like(super().embed(x))


class AnotherScale(TimmViT):
    native = None

    def embed(self, x):
        return super().embed(x) * (1.0 if x.ndim == 4 else 2.0)


class FeaturesOfTheClassToken(TimmViT):
    def features(self, images):
        index = torch.arange(16).expand(len(images), -1)
        return self.encode(self.embed(images), index).final[:, 0]


class NormForgotten(TimmViT):
    def encode(self, tokens, index, mask=None):
        encoded = super().encode(tokens, index, mask)
        return sb.Encoded(encoded.input, encoded.hidden, encoded.hidden[-1])


class LayerForgotten(TimmViT):
    def encode(self, tokens, index, mask=None):
        encoded = super().encode(tokens, index, mask)
        return sb.Encoded(encoded.input, encoded.hidden[:1], self.norm(encoded.hidden[0]))


class InputOfTheSecondBlock(TimmViT):
    def encode(self, tokens, index, mask=None):
        encoded = super().encode(tokens, index, mask)
        return sb.Encoded(encoded.hidden[0], encoded.hidden, encoded.final)


class InputBeforeTheEmbedding(TimmViT):
    def encode(self, tokens, index, mask=None):
        encoded = super().encode(tokens, index, mask)
        return sb.Encoded(torch.zeros_like(encoded.input), encoded.hidden, encoded.final)


class FeaturesWithoutTheMask(TimmViT):
    def features(self, images, mask=None):
        return super().features(images)


class PrefixCutOff(TimmViT):
    def encode(self, tokens, index, mask=None):
        encoded = super().encode(tokens, index, mask)
        return sb.Encoded(encoded.input[:, 1:], tuple(h[:, 1:] for h in encoded.hidden), encoded.final[:, 1:])


class SeesOtherImages(TimmViT):
    native, detached = None, False

    def encode(self, tokens, index, mask=None):
        mean = tokens.mean((0, 1))
        return super().encode(tokens + (mean.detach() if self.detached else mean), index, mask)


class GuessesOtherImages(SeesOtherImages):
    detached = True


class BatchNormInTraining(TimmViT):
    def __init__(self, module):
        super().__init__(module)
        module.norm_pre = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(16), nn.Unflatten(0, (2, -1)))


class MasklessRecomputation(TimmViT):
    def encode(self, tokens, index, mask=None):
        return super().encode(tokens, index, None if self.grad_checkpointing else mask)


class WeightsOutside(TimmViT):
    def __init__(self, module):
        super().__init__(module)
        self.scale = nn.Parameter(torch.zeros(16))

    def embed(self, x):
        return super().embed(x) * (1 + self.scale)

    def native(self, images):
        index = torch.arange(16).expand(len(images), -1)
        return self.encode(self.embed(images), index).final


class FeaturesOfACopy(TimmViT):
    def __init__(self, module):
        super().__init__(module)
        self.kept = None

    def features(self, images, mask=None):
        index = torch.arange(16).expand(len(images), -1)
        if self.kept is None:
            self.kept = {n: p.detach().clone() for n, p in self.module.named_parameters()}
        now = {n: p.detach().clone() for n, p in self.module.named_parameters()}
        self._write(self.kept)
        out = self.encode(self.embed(images), index, mask).final[:, self.num_prefix :].mean(1)
        self._write(now)
        return out

    @torch.no_grad()
    def _write(self, values):
        for name, parameter in self.module.named_parameters():
            parameter.copy_(values[name])


class Unsavable(TimmViT):
    def __init__(self, module):
        super().__init__(module)
        module.register_state_dict_post_hook(lambda m, state, prefix, local: state.update(other=torch.ones(1)))


CLASS = {"class_token": True}
BROKEN = {
    DroppedMask: ({}, r"by gradient: tokens of step 0 of image 0 see position \d+, which the mask hides"),
    MaskOfTheFirstImage: ({}, r"by gradient: tokens of step \d of image 1 see position \d+, which the mask hides"),
    OpenClassToken: (CLASS, r"by gradient: prefix tokens of image 0 see position \d+, which the mask hides"),
    StrictMask: ({}, r"tokens of step \d of image \d do not see position 3, which the mask lets them see"),
    InvertedMask: ({}, r"tokens of step 0 of image 0 see position \d+, which the mask hides"),
    PositionsBySlot: ({}, r"tokens in another order, with their positions, give other outputs .*place in the sequence"),
    PositionsAnyway: ({}, r"tokens in another order, without positions \(index=None\), give other outputs"),
    NoPositions: ({}, r"other positions give the same output: does encode use its index\?"),
    MixedPatches: ({}, r"embed of images: the token at position \d+ of image \d changes with pixels of other patches"),
    BlurredImages: ({}, r"embed of images: the token at position \d+ of image \d changes with pixels of other patches"),
    BlindEmbedding: ({}, r"embed of images: the token at position \d+ of image \d does not see its own pixels"),
    AnotherScale: ({}, "images and their patches embed differently"),
    FeaturesOfTheClassToken: (CLASS, "features of images are not the mean over normalised patch tokens"),
    NormForgotten: ({}, r"final is not the last hidden state normalised by encoder\.norm"),
    LayerForgotten: ({}, "encode gives 1 hidden states, expected depth=2"),
    InputOfTheSecondBlock: ({}, r"input is not what enters the first block: a row must see its own token"),
    InputBeforeTheEmbedding: (CLASS, r"input is not what enters the first block: a row must see its own token"),
    FeaturesWithoutTheMask: ({}, "features of images under a mask are not the mean over normalised patch tokens"),
    PrefixCutOff: (CLASS, r"encode gives states of shape \(2, 16, 16\), expected \[B, P \+ n, D\] = \(2, 17, 16\)"),
    SeesOtherImages: ({}, r"by gradient: tokens of step 0 of image 0 see tokens of image 1 in the same batch"),
    GuessesOtherImages: ({}, r"by noise: tokens of step \d of image \d change with tokens of"),
    BatchNormInTraining: ({}, r"by noise in training mode: tokens of step \d of image \d change with tokens of step"),
    MasklessRecomputation: ({}, r"gradient checkpointing changes the gradient of module\.\S+ under a mask"),
    WeightsOutside: ({}, r"parameters outside encoder\.module would not be exported: scale"),
    FeaturesOfACopy: ({}, r"features do not change with the weights of encoder\.module: do they come from a copy\?"),
    Unsavable: ({}, r"encoder\.module does not load its own state_dict strictly: [\s\S]*.other."),
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_broken_is_found_and_named(kind):
    options, message = BROKEN[kind]
    with pytest.raises(RoleError, match=message):
        check(build(kind, **options))


def test_another_native_output_is_found():
    encoder = build()
    with pytest.raises(RoleError, match=r"does not reproduce the model's own output: a difference of 0\.5"):
        check(encoder, native=lambda images: encoder.module.forward_features(images) + 0.5)
    with pytest.raises(RoleError, match=r"own output: shape \(2, 16, 16\) instead of \(2, 15, 16\)"):
        check(encoder, native=lambda images: encoder.module.forward_features(images)[:, 1:])


def test_missing_members_are_named():
    encoder = Bare(build())
    del encoder.norm, encoder.depth
    with pytest.raises(RoleError, match="Bare lacks norm, depth"):
        check_unchecked(encoder)
    encoder = Bare(build())
    encoder.module = "vit"
    with pytest.raises(RoleError, match=r"encoder\.module is a str, expected the model"):
        check_unchecked(encoder)


def check_unchecked(encoder):
    """Tests check types on every call, which would speak up first."""
    check_token_encoder.__wrapped__(encoder)
