"""The leak test on anybody's functions: what it catches, what it must not refuse, and what it says."""

import dataclasses
import functools
import random

import numpy as np
import pytest
import torch
from torch import nn

from ssl_blocks.testing import LeakError, LeakReport, Predicted, assert_no_leak, check_leaks, watch_loss
from tests.testing.sabotage import SABOTAGES, Masked, N, P, cut, noise, normalised


def report(model, images=None, **options):
    generator = torch.Generator().manual_seed(0)
    images = noise() if images is None else images
    function = model.predict if isinstance(model, nn.Module) else model
    return check_leaks(function, images, **{"patch_size": 2, "generator": generator, "draws": 2, **options})


def refuse(function, **options):
    """At the first leak, where a report looks on."""
    with pytest.raises(LeakError):
        assert_no_leak(function, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_leak_is_found(name):
    refuse(Masked(SABOTAGES[name]).predict, images=noise(), draws=128)


def test_a_report_names_all_that_leaks():
    found = report(Masked(SABOTAGES["own patch"]))
    assert len(found.leaks) > 2
    assert not found.passed


def test_an_honest_function_passes():
    found = report(Masked(), draws=128)
    assert isinstance(found, LeakReport)
    assert found.leaks == ()
    assert found.passed == ("predict",)
    assert found.draws == 3 + 164 + 36 + 32 + 32


def peek(model):
    """The control: the same function with its own patch added must not pass."""
    inner = model.predict
    model.predict = lambda images: dataclasses.replace(
        rows := inner(images), predictions=rows.predictions + rows.targets, loss=None
    )
    return model


def changed(**methods):
    model = Masked()
    for name, method in methods.items():
        setattr(model, name, functools.partial(method, model))
    return model


def zero_head():
    model = Masked()
    nn.init.zeros_(model.head.weight)
    return model


def row_clipped(model, rows, targets, is_target):
    return (rows - targets).square().mean(-1).clamp(max=0.7)[is_target].mean()


def clipped_to_nothing(model, rows, targets, is_target):
    return (rows - targets)[is_target].square().mean().clamp(max=1e-3)


def value_clipped(model, rows, targets, is_target):
    return (rows - targets).abs().clamp(max=0.4)[is_target].mean()


def hardest(model, rows, targets, is_target):
    return (rows - targets)[is_target].square().mean(-1).topk(4).values.mean()


def by_numpy(model, batch):
    return torch.from_numpy(np.random.rand(batch, N).argsort(1)) < 6  # noqa: NPY002 (as people write it)


def by_python(model, batch):
    return torch.tensor([[place in random.sample(range(N), 6) for place in range(N)] for _ in range(batch)])


def of_one_mask(model, batch):
    return (torch.rand(N).argsort() < 6).expand(batch, -1)


def of_any_number(model, batch):
    return torch.rand(batch, N).argsort(1) < torch.randint(3, 9, (batch, 1))


HONEST = {
    "half precision": lambda: (Masked().half(), noise().half()),
    "bfloat16": lambda: (Masked().bfloat16(), noise().bfloat16()),
    "double": lambda: (Masked().double(), noise().double()),
    "images of 0 to 255": lambda: (Masked(), 127 + 60 * noise()),
    "images of 1e6": lambda: (Masked(), 1e6 * noise()),
    "images of 1e-4": lambda: (Masked(), 1e-4 * noise()),
    "a channel that is constant": lambda: (Masked(), noise() * torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)),
    "a zero head": lambda: (zero_head(), noise()),
    "a loss that clips rows": lambda: (changed(loss=row_clipped), noise()),
    "a loss that clips all": lambda: (changed(loss=clipped_to_nothing), noise()),
    "a loss that clips values": lambda: (changed(loss=value_clipped), noise()),
    "a loss of the hardest rows": lambda: (changed(loss=hardest), noise()),
    "draws by numpy": lambda: (changed(draw=by_numpy), noise()),
    "draws by Python": lambda: (changed(draw=by_python), noise()),
    "one mask a batch": lambda: (changed(draw=of_one_mask), noise()),
    "masks of any size": lambda: (changed(draw=of_any_number), noise()),
    "one image": lambda: (Masked(), noise(1)),
    "few given": lambda: (Masked(num_given=1), noise()),
    "a frozen model": lambda: (Masked().requires_grad_(False), noise()),
}


@pytest.mark.parametrize("name", HONEST)
def test_what_is_honest_is_not_refused(name):
    model, images = HONEST[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert report(model, images, draws=2).leaks == ()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    refuse(peek(model).predict, images=images, draws=2)  # the control


# What a function may return


def pixels_of(images, patch):
    """Patches (c, y, x) instead of (y, x, c)."""
    return images.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)


def autoregressive(images, *, diagonal=0, shift=1, form="step"):
    """Sums over what came before; honest where a row sees positions before its own."""
    patches = pixels_of(images, 2)
    weight = torch.rand(N, N, generator=torch.Generator().manual_seed(0)).to(patches.dtype) + 0.5
    seen = (weight.tril(diagonal) @ patches)[:, : N - shift]
    index = torch.arange(shift, N).expand(len(images), -1)
    if form == "rows":
        before = torch.arange(N) < index[..., None]
        return Predicted(seen, patches[:, shift:], index, given=before)
    return seen, patches[:, shift:], index, index


def test_a_plain_tuple_with_steps_is_enough():
    assert report(autoregressive).leaks == ()
    found = report(functools.partial(autoregressive, shift=0))
    assert found.leaks[0].startswith("autoregressive: by gradient: the prediction of step 0 in image 0 depends on")
    assert report(functools.partial(autoregressive, diagonal=1)).leaks
    assert "does not depend" in report(functools.partial(autoregressive, diagonal=-1)).leaks[0]


def test_what_each_row_may_see_can_be_told_by_row():
    assert report(functools.partial(autoregressive, form="rows")).leaks == ()
    assert report(functools.partial(autoregressive, form="rows", diagonal=1)).leaks


@pytest.mark.parametrize("make", [cut, lambda x: pixels_of(x, 2), lambda x: normalised(cut(x))])
def test_positions_are_found_by_the_targets(make):
    model = Masked()

    def predict(images, extra=0.0):
        given = model.draw(len(images))
        place = (~given).nonzero()[:, 1].reshape(len(images), -1)
        pick = place[..., None].expand(-1, -1, P)
        rows = model.rows(cut(images), given).gather(1, pick)
        targets = make(images).gather(1, pick)
        return rows + extra * targets, targets

    assert check_leaks(predict, noise(), draws=2).leaks == ()  # the patch size is told by the targets
    refuse(functools.partial(predict, extra=1e-3), images=noise(), draws=2)


def test_rows_of_a_reference_implementation():
    """Predictions of all patches, and a mask of those that count."""
    model = Masked()

    def predict(images):
        given = model.draw(len(images))
        return Predicted(model.rows(cut(images), given), normalised(cut(images)), is_target=~given)

    assert report(predict).leaks == ()


def test_targets_shifted_against_their_index_are_found():
    def predict(images):
        rows = Masked().predict(images)
        return dataclasses.replace(rows, targets=rows.targets.roll(1, 1), loss=None)

    assert "is the patch of position 15, but its index says 0" in report(predict).leaks[0]


class Lightning(nn.Module):
    """As a Lightning module is written."""

    def __init__(self, leak=False):
        super().__init__()
        self.model, self.criterion, self.leak = Masked(), nn.MSELoss(), leak

    def training_step(self, batch, batch_idx):
        images = batch[0][0]
        given = self.model.draw(len(images))
        place = (~given).nonzero()[:, 1].reshape(len(images), -1, 1).expand(-1, -1, P)
        seen = torch.ones_like(given) if self.leak else given
        rows = self.model.rows(cut(images), seen).gather(1, place)
        return {"loss": self.criterion(rows, cut(images).gather(1, place))}


def test_a_lightning_module_takes_one_line():
    module = Lightning()
    assert check_leaks(watch_loss(module, module.criterion), noise(), draws=2).passed == ("Lightning",)
    module = Lightning(leak=True)
    found = check_leaks(watch_loss(module, module.criterion), noise(), draws=2)
    assert found.leaks[0].startswith("Lightning: by gradient: the prediction of step 0 in image 0 depends on position")
    assert not module.criterion._forward_hooks


def test_weights_are_those_that_the_function_names_or_that_are_given():
    hidden = {"model": Masked(SABOTAGES["a zero branch"])}
    assert check_leaks(lambda images: hidden["model"].predict(images), noise(), patch_size=2, draws=2).leaks

    class Far:
        inside = (((hidden["model"],),),)

    assert check_leaks(lambda images: Far.inside[0][0][0].predict(images), noise(), patch_size=2, draws=2).leaks == ()
    far = check_leaks(
        lambda images: Far.inside[0][0][0].predict(images), noise(), patch_size=2, draws=2, module=hidden["model"]
    )
    assert far.leaks


# What is wrong is said


def test_images_that_are_not_finite_are_one_sentence():
    images = noise()
    images[1, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"^images must be finite, but image 1 holds NaN or infinite values$"):
        report(Masked(), images)


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (lambda x: x, TypeError, r"must return ssl_blocks.testing.Predicted, or a tuple \(predictions .*got Tensor"),
        (lambda x: (x,), TypeError, "got a tuple of 1"),
        (lambda x: (cut(x), cut(x)[:, :3]), ValueError, r"of one shape \[B, t, P\], got \(3, 16, 8\) and \(3, 3, 8\)"),
        (lambda x: (cut(x), cut(x).flip(-1).square()), ValueError, "index=None: target row 0 of image 0 is none"),
        (lambda x: (cut(x), cut(x), torch.arange(16)), ValueError, r"index of shape \[B, t\] = \(3, 16\), got \(16,\)"),
        (lambda x: (cut(x), cut(x), None, torch.ones(3, 4) > 0), ValueError, r"given of shape \[B, N\] = \(3, 16\)"),
        (lambda x: (cut(x) / 0, cut(x)), ValueError, "prediction of position 0 in image 0 is not finite"),
        (lambda x: (cut(x), cut(x), torch.full((3, 16), 16)), ValueError, "from 0 to 15, got 16"),
    ],
)  # fmt: skip
def test_what_is_returned_wrongly_is_said(found, error, message):
    with pytest.raises(error, match=message):
        report(found)


def test_an_unknown_patch_size_is_asked_for():
    with pytest.raises(ValueError, match=r"patch_size=None: give it, for it cannot be told from what .* returns"):
        check_leaks(lambda images: (images.new_ones(3, 4, 3), images.new_ones(3, 4, 3)), noise())


def test_hints_say_what_was_zero_and_what_was_not_looked_at():
    hints = " | ".join(report(zero_head()).hints)
    assert "weights that are zero (gate, head.weight, valve) were shaken while this looked" in hints
    assert "compiled code was not looked at (compiled=True)" in hints
    assert "whether predictions know where later tokens lie was not looked at" in hints


COMPILED = """
import torch
from ssl_blocks.testing import check_leaks
from tests.testing.sabotage import Masked, noise

def spoil(model, rows, patches, given):
    return rows + 1e-3 * patches if torch.compiler.is_compiling() else rows

assert check_leaks(Masked(spoil).predict, noise(), patch_size=2, draws=2).leaks == ()
assert check_leaks(Masked().predict, noise(), patch_size=2, compiled=True).leaks == ()
print(check_leaks(Masked(spoil).predict, noise(), patch_size=2, compiled=True).leaks)
"""


def test_compiled_code_is_looked_at_where_it_is_asked_for(bare):
    """In a process of its own: types that are looked at while tests run break the graph."""
    assert "predict: by noise when compiled: the prediction of step 0 in image 0 of 4 changes" in bare(COMPILED)
