"""Every file of the gallery trains, leaks nothing and goes on in the same bits; what is its own compiles."""

import io
import re

import pytest
import torch

import ssl_blocks as sb
from docs.make_gallery import header, leak_checked, new_lines
from ssl_blocks.testing import check_objective
from tests.gallery.compile_check import COMPILED, TARGETS
from tests.gallery.methods import FOLDER, NAMES, OWN, draw, method, shallow, tiny
from tests.gallery.two_processes import DIVIDED, SIZE, gradients

MOST_LINES, MOST_NEW = 130, 40
STEPS = 2


class Training:
    """A plain loop over an objective, which can be left and taken up again."""

    def __init__(self, name):
        self.objective, self.images = tiny(name, **shallow(name))
        self.optimizer = torch.optim.AdamW(self.objective.parameters(), lr=1e-3)

    def run(self, steps):
        losses = []
        for step in steps:
            self.objective.before_step(sb.Progress(step=step, epoch=step, num_steps=STEPS, steps_per_epoch=1))
            loss = self.objective(self.images, draw(self.objective, self.images, step)).loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.objective.after_step()
            losses.append(loss.item())
        return losses

    def state(self):
        return {"objective": self.objective.state_dict(), "optimizer": self.optimizer.state_dict()}


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_goes_on_in_the_same_bits(name):
    straight, saved = Training(name), io.BytesIO()
    before = {key: value.clone() for key, value in straight.objective.named_parameters() if value.requires_grad}
    losses = straight.run(range(STEPS // 2))
    torch.save(straight.state(), saved)
    losses += straight.run(range(STEPS // 2, STEPS))
    assert torch.tensor(losses).isfinite().all()
    still = [key for key, value in straight.objective.named_parameters() if key in before and value.equal(before[key])]
    assert not still, f"nothing moves {still}"
    other, stored = Training(name), torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
    other.objective.load_state_dict(stored["objective"])
    other.optimizer.load_state_dict(stored["optimizer"])
    assert other.run(range(STEPS // 2, STEPS)) == losses[STEPS // 2 :]
    for key, value in straight.objective.state_dict().items():
        assert torch.equal(value, other.objective.state_dict()[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_it_leaks_nothing_or_says_why_that_is_no_question(name, capsys):
    torch.manual_seed(0)
    method(name).check(draws=2, **(shallow(name) | {"batch": 4}))  # of fewer views none may be masked
    printed = capsys.readouterr().out
    if "no leak test" in printed:
        assert method(name).views
        assert "compares whole views" in printed
    else:
        assert printed.startswith("no leak in SegmentPrediction") or not method(name).views
    assert ("no leak in" in printed) == (leak_checked((FOLDER / f"{name}.py").read_text()) != "does not apply")


def test_what_goes_wrong_in_a_leak_test_is_no_excuse_for_none(monkeypatch):
    objective, images = tiny("simmim")
    monkeypatch.setattr(type(method("simmim")), "tiny", lambda _, **size: (objective, images[..., :-1]))
    with pytest.raises(ValueError, match="do not fit this tokenizer"):
        method("simmim").check()


@pytest.mark.parametrize("name", OWN)
def test_it_keeps_what_a_training_loop_relies_on(name):
    objective, images = tiny(name, **shallow(name))
    whole_batch = isinstance(objective, sb.WeightedSum) or objective.takes_views
    check_objective(objective, images, whole_batch=whole_batch, looks=method(name).draw_looks)


@pytest.mark.parametrize("name", [*COMPILED, *TARGETS])
def test_what_is_its_own_compiles_in_one_graph(compiled, name):
    found = compiled["gallery"][name]
    assert found["graphs"] == 1
    assert found["apart"] < 1e-5


@pytest.mark.parametrize("name", DIVIDED)
def test_two_processes_equal_one(divided, name):
    loss, found = torch.load(divided / "gallery" / "found.pt", weights_only=True)[name]
    expected, wanted = gradients(name, slice(0, SIZE))
    torch.testing.assert_close(loss, expected)
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=1e-5 * largest, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert new_lines(text) <= MOST_NEW
    fields = {"title", "summary", "Paper", "Idea", "What", "Where", "Who", "New", "Command"}
    assert fields == {field for field, value in header(text).items() if value}
    assert header(text)["Command"] == f"python examples/gallery/{name}.py"


@pytest.mark.process
def test_the_command_trains_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check = type(method("simmim")).check
    monkeypatch.setattr(type(method("simmim")), "check", lambda self: check(self, draws=2, **shallow("simmim")))
    small = ["--data", "digits", "--data.max_train=64", "--data.max_test=16", "--trainer.epochs=1"]
    small += ["--encoder.width=16", "--encoder.depth=1", "--data.image_size=16", "--trainer.device=cpu"]
    assert method("simmim").main(small) == 0
    printed = capsys.readouterr().out
    assert "no leak in SegmentPrediction" in printed
    assert re.search(r"loss \d+\.\d+ -> \d+\.\d+; kNN .+% -> .+% in \d+ s", printed)
    assert method("simmim").main(["--resume", str(tmp_path / "runs" / "gallery_simmim")]) == 0
    assert "is complete" in capsys.readouterr().out
    assert method("simmim").main([*small, "--data.nosuch=x"]) == 2
